"""Fused kernels in Triton, and the one switch that turns them on.

They are off unless ``MM_EFFICIENT_KERNELS=1`` is in the environment when the package is
imported. Each is an operator ``torch.ops.mm_efficient.NAME`` with a fake form and a
gradient, so ``torch.compile`` and ``torch.export`` go through. The plain form beside
the call computes the same function, and everything runs without Triton. What was run
where: docs/gpu.md.
"""
import importlib
import importlib.util
import os
import warnings

import torch
from torch import Tensor

VARIABLE = 'MM_EFFICIENT_KERNELS'
# A program holds that many landmarks of SOFT, anchors of EcoFormer and channels of
# ReduceFormer's queries in on-chip memory
MAX_LANDMARKS = 64
MAX_ANCHORS = 32
MAX_CHANNELS = 1024
MODULES = ('newton_inverse', 'gaussian_attention', 'focal_loss', 'reduction_attention',
           'hash_attention')
FLOATS = (torch.float16, torch.bfloat16, torch.float32)
# Triton's interpreter runs kernels on the CPU, in tests
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'

enabled = False


def switch(on: bool) -> None:
    """Turn the kernels on or off; the environment variable turns them on.

    Args:
        on (bool): Whether to use them from now on.

    Raises:
        ImportError: If Triton is missing, or PyTorch is older than 2.4.
    """
    global enabled
    if on:
        if importlib.util.find_spec('triton') is None:
            raise ImportError('Triton is not installed.')
        if not hasattr(torch.library, 'custom_op'):
            raise ImportError(f'PyTorch 2.4 or later is needed, not '
                              f'{torch.__version__}.')
        for name in MODULES:  # on import, each registers its operators
            importlib.import_module(f'.{name}', __name__)
    enabled = on


def use_kernel(*tensors: Tensor) -> bool:
    """Whether a kernel computes with these tensors.

    Args:
        *tensors (Tensor): Inputs of the operator.

    Returns:
        bool: True if kernels are on, and all tensors are in float32 or half precision
        on a GPU. TorchScript has no such operators.
    """
    return enabled and not torch.jit.is_tracing() and all(
        (x.is_cuda or INTERPRETED) and x.dtype in FLOATS for x in tensors)


if (value := os.environ.get(VARIABLE)) not in (None, '', '0', '1'):
    warnings.warn(f'{VARIABLE}={value} has no effect: set it to 1 for the fused '
                  'kernels, or to 0.', stacklevel=2)
if value == '1':
    try:
        switch(True)
    except ImportError as error:
        warnings.warn(f'{VARIABLE}=1 has no effect: {error}', stacklevel=2)
