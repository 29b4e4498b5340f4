"""The energy model of EcoFormer, for any model.

https://arxiv.org/abs/2209.09004 counts multiplications and additions, and takes what
one of each costs in a 45 nm process with 32-bit floats. The rules, as in the published
script (https://github.com/ziplab/EcoFormer), with every module's work counted as
so many multiplications and as many additions:

- convolution: its multiply-adds, and one per output element if it has a bias;
- linear layer: its multiply-adds, without bias;
- norm with affine parameters: two per input element;
- matrix product outside of layers, as in attention: its multiply-adds;
- softmax: one multiplication per element, the scaling of the score;
- hashing attention: see its ``count_operations``.

Where the script has no rule, because none of its models needs one (norms other than
layer norms, products outside of softmax attention), the ones above are extended.

What it leaves out, for all models: activation functions, residuals, the exponentials of
softmax, squares and unit normalisation in the distances of hashing (for PVTv2-B0 1.7 %
more multiplications), and memory traffic, which in practice costs more than arithmetic.
"""
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .complexity import ATTENTION, ELEMENTS, EXTRA_FLOPS, count_operators
from .models import Subject, on_some_device

PICOJOULE_PER_MUL = 3.7
PICOJOULE_PER_ADD = 0.9
LAYERS = {_ConvNd: 'convolutions', nn.Linear: 'linear layers', _BatchNorm: 'norms',
          nn.GroupNorm: 'norms', nn.LayerNorm: 'norms'}
SOFTMAX = [getattr(torch.ops.aten, name) for name in ('_softmax', '_safe_softmax')
           if hasattr(torch.ops.aten, name)]
# Scores that softmax attention scales: (B, H, N, d) queries, (B, H, M, d) keys
SCORES = {
    **dict.fromkeys(ELEMENTS, lambda *args, out_shape=None, **kwargs: 0),
    **dict.fromkeys(SOFTMAX, lambda scores, *args, out_shape=None: math.prod(scores)),
    **dict.fromkeys(ATTENTION, lambda query, key, *args, out_shape=None, **kwargs:
                    math.prod(query[:-1]) * key[-2]),
}


@dataclass
class Operations:
    """Numbers of operations.

    Args:
        mul (int): Multiplications.
        add (int): Additions.
    """
    mul: int = 0
    add: int = 0

    def __add__(self, other: 'Operations') -> 'Operations':
        return Operations(self.mul + other.mul, self.add + other.add)

    @property
    def picojoule(self) -> float:
        """Energy in pJ."""
        return PICOJOULE_PER_MUL * self.mul + PICOJOULE_PER_ADD * self.add


def energy(subject: Subject,
           size: tuple[int, int] | None = None) -> dict[str, Operations]:
    """Multiplications and additions of one image, by part.

    Args:
        subject (Subject): The model.
        size (tuple[int, int], optional): Height and width of the image.
            Defaults to None, the usual one.

    Returns:
        dict[str, Operations]: 'convolutions', 'linear layers', 'norms', 'products'
        (outside of layers) and 'hashing attention'; their sum is the model.
    """
    return on_some_device(
        subject, size, lambda model, x: count_operations(model, x, subject.run))


def count_operations(model: nn.Module, x: Tensor,
                     run: Callable[[nn.Module, Tensor], Any] | None = None
                     ) -> dict[str, Operations]:
    """Multiplications and additions of a model for an input, by part.

    Args:
        model (nn.Module): The model.
        x (Tensor): Images, (B, C, H, W).
        run (Callable, optional): Calls the model with ``x``. Defaults to None,
            ``model(x)``.

    Returns:
        dict[str, Operations]: As of :func:`energy`.
    """
    watched = {module: [] for module in model.modules()
               if isinstance(module, tuple(LAYERS))
               or hasattr(module, 'count_operations')}
    hooks = [module.register_forward_hook(_remember(calls))
             for module, calls in watched.items()]
    try:
        flops, scores, _ = count_operators(model, x, run, EXTRA_FLOPS, SCORES)
    finally:
        for hook in hooks:
            hook.remove()
    macs = {name: sum(numbers.values()) // 2 for name, numbers in flops.items()}
    parts = {part: Operations() for part in [*LAYERS.values(), 'products',
                                             'hashing attention']}
    left = macs['']
    for name, module in model.named_modules():
        if hasattr(module, 'count_operations'):
            left -= macs[name] - sum(macs[f'{name}.{child}']
                                     for child, _ in module.named_children())
            for given, _ in watched[module]:
                parts['hashing attention'] += Operations(
                    *module.count_operations(given))
        elif isinstance(module, tuple(LAYERS)):
            left -= macs[name]
            part = next(p for kind, p in LAYERS.items() if isinstance(module, kind))
            work = macs[name] + _beside_products(module, watched[module])
            parts[part] += Operations(work, work)
    scaled = sum(scores[''].values())
    parts['products'] = Operations(left + scaled, left)
    return parts


def _remember(calls: list) -> Callable:
    def hook(module, args, output):
        calls.append((args[0].shape, output.shape))
    return hook


def _beside_products(layer: nn.Module, calls: list) -> int:
    """Operations of each kind that a layer has beside its multiply-adds."""
    if isinstance(layer, nn.Linear):
        return 0
    if isinstance(layer, _ConvNd):
        return sum(math.prod(out) for _, out in calls) * (layer.bias is not None)
    return 2 * sum(math.prod(given) for given, _ in calls) * (layer.weight is not None)
