"""EcoFormer's energy model, for any model.

https://arxiv.org/abs/2209.09004 counts multiplications and additions, and charges each
with its energy in a 45 nm process with 32-bit floats. As in the published script
(https://github.com/ziplab/EcoFormer), each of these counts as that many multiplications
and that many additions:

- convolution: its multiply-adds, plus one per output element if it has a bias;
- linear layer: its multiply-adds, without bias;
- norm with affine parameters: two per input element;
- matmul outside layers, as in attention: its multiply-adds.

In addition,

- softmax: one multiplication per element, which scales the score;
- hashing attention: see its ``count_operations``.

The script covers only its own models. The same rules are extended here to all norms and
to matmuls outside softmax attention.

Not counted for any model: activation functions, residuals, the exponentials of softmax,
squares and unit normalisation in the distances of hashing (1.7 % more multiplications
for PVTv2-B0), and memory traffic, which in practice costs more than arithmetic.
"""
import contextlib
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from .complexity import (
    ATTENTION,
    ELEMENTS,
    EXTRA_FLOPS,
    Formulas,
    Run,
    Shape,
    attention_scores,
    call_model,
    count_operators,
)
from .models import ModelSpec, run_without_data

PICOJOULE_PER_MUL = 3.7
PICOJOULE_PER_ADD = 0.9
LAYERS: dict[type[nn.Module], str] = {
    _ConvNd: 'convolutions', nn.Linear: 'linear layers', _BatchNorm: 'norms',
    nn.GroupNorm: 'norms', nn.LayerNorm: 'norms'}
SOFTMAX = [getattr(torch.ops.aten, name) for name in ('_softmax', '_safe_softmax')
           if hasattr(torch.ops.aten, name)]
# Number of scores that softmax attention scales
SCORES: Formulas = {
    **dict.fromkeys(ELEMENTS, lambda *args, **kwargs: 0),
    **dict.fromkeys(SOFTMAX, lambda scores, *args, **kwargs: math.prod(scores)),
    **dict.fromkeys(ATTENTION, attention_scores),
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


def energy(spec: ModelSpec,
           shape: tuple[int, int] | None = None) -> dict[str, Operations]:
    """Count the multiplications and additions of a model for one image.

    Args:
        spec (ModelSpec): The model.
        shape (tuple[int, int], optional): Height and width of the image.
            Defaults to None, ``spec.shape``.

    Returns:
        dict[str, Operations]: Counts of 'convolutions', 'linear layers', 'norms',
        'matmuls' (outside layers) and 'hashing attention'. They sum to the model's.

    Raises:
        ExecutionError: If the model cannot be built or run.
    """
    return run_without_data(
        spec, shape, lambda model, x: count_operations(model, x, spec.run))


def count_operations(model: nn.Module, x: Tensor,
                     run: Run = call_model) -> dict[str, Operations]:
    """Count the multiplications and additions of one forward pass.

    Args:
        model (nn.Module): The model.
        x (Tensor): Images, (B, C, H, W).
        run (Callable): Function that calls the model with ``x``. Defaults to
            ``model(x)``.

    Returns:
        dict[str, Operations]: As from :func:`energy`.
    """
    calls: dict[nn.Module, list[tuple[Shape, Shape]]] = {
        module: [] for module in model.modules()
        if _layer_part(module) or hasattr(module, 'count_operations')}

    def record_shapes(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        calls[module].append((args[0].shape, output.shape))

    with contextlib.ExitStack() as hooks:
        for module in calls:
            hooks.enter_context(module.register_forward_hook(record_shapes))
        (flops, scores), _ = count_operators(model, x, run, EXTRA_FLOPS, SCORES)
    macs = {name: counts.total() // 2 for name, counts in flops.items()}
    parts = {part: Operations()
             for part in (*LAYERS.values(), 'matmuls', 'hashing attention')}
    rest = macs['']  # operators outside layers
    for name, module in model.named_modules():
        if hasattr(module, 'count_operations'):
            rest -= macs[name] - sum(macs[f'{name}.{child}']
                                     for child, _ in module.named_children())
            for given, _ in calls[module]:
                parts['hashing attention'] += Operations(
                    *module.count_operations(given))
        elif part := _layer_part(module):
            rest -= macs[name]
            work = macs[name] + _extra_work(module, calls[module])
            parts[part] += Operations(work, work)
    parts['matmuls'] = Operations(rest + scores[''].total(), rest)
    return parts


def _layer_part(module: nn.Module) -> str | None:
    return next((part for kind, part in LAYERS.items() if isinstance(module, kind)),
                None)


def _extra_work(layer: Any, shapes: list[tuple[Shape, Shape]]) -> int:
    """Multiplications of a layer beyond its multiply-adds, and as many additions."""
    if isinstance(layer, nn.Linear):
        return 0
    if isinstance(layer, _ConvNd):
        return sum(math.prod(out) for _, out in shapes) * (layer.bias is not None)
    return 2 * sum(math.prod(given) for given, _ in shapes) * (layer.weight is not None)
