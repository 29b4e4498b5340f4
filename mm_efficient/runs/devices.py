"""What a run needs of its GPU before the first tensor is on it."""
import importlib.util
import logging
import multiprocessing
import os
import shutil
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.logging import print_log

from ..errors import InputError, one_line

FIRST_GPU = Path('/dev/nvidia0')


def allow_determinism(cfg: Config) -> None:
    """Let cuBLAS repeat its results if the config asks for deterministic training.

    PyTorch refuses matrix products otherwise, see
    https://docs.nvidia.com/cuda/cublas/#results-reproducibility. Call it before the
    first product on a GPU.

    Args:
        cfg (Config): Config of the run.
    """
    if (cfg.get('randomness') or {}).get('deterministic'):
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')


def warn_of_unused_gpu() -> None:
    """Warn if there is an NVIDIA GPU that PyTorch cannot use, unless it is hidden."""
    hidden = os.environ.get('CUDA_VISIBLE_DEVICES') in ('', '-1')
    if hidden or not FIRST_GPU.exists() or torch.cuda.is_available():
        return
    built = f'for CUDA {torch.version.cuda}' if torch.version.cuda else 'without CUDA'
    print_log(
        f'This machine has an NVIDIA GPU, but PyTorch {torch.__version__} (built '
        f'{built}) cannot use it, so everything runs on the CPU. Update the driver, or '
        'install PyTorch for the CUDA version that nvidia-smi shows.',
        logger='current', level=logging.WARNING)


def check_compiler() -> None:
    """Check that ``torch.compile`` finds what it needs.

    Raises:
        InputError: Without Triton on a GPU, or a C++ compiler on a CPU.
    """
    if get_device() == 'cuda':
        if importlib.util.find_spec('triton') is None:
            raise InputError('--compile needs the package triton, which is missing: '
                             'pip install triton.')
        return
    compiler = os.environ.get('CXX') or (
        'clang++' if sys.platform == 'darwin' else 'g++')
    if shutil.which(compiler) is None:
        raise InputError(f'--compile needs a C++ compiler on the CPU, but {compiler} '
                         'is missing: install it, or set CXX to another one.')


def check_workers(cfg: Config, splits: Iterable[str]) -> None:
    """Check that processes which load data can send it.

    Args:
        cfg (Config): Config of the run.
        splits (Iterable[str]): What it reads, any of 'train', 'val' and 'test'.

    Raises:
        InputError: Without shared memory, as in some containers.
    """
    loaders = [split for split in splits
               if (cfg.get(f'{split}_dataloader') or {}).get('num_workers')]
    if not loaders:
        return
    try:
        multiprocessing.Lock()
        torch.zeros(1).share_memory_()
    except (OSError, RuntimeError) as error:
        options = ' '.join(f'{split}_dataloader.num_workers=0' for split in loaders)
        raise InputError(
            f'{loaders[0]}_dataloader.num_workers needs shared memory, /dev/shm, which '
            f'cannot be written ({one_line(error)}). Mount it writable '
            f'(docker: --shm-size=8g), or use --cfg-options {options}.') from None
