"""Fusing for inference: the same outputs from fewer operators.

1. Modules with ``switch_to_deploy()``, OpenMMLab's convention, simplify themselves;
   timm models do so by ``timm.utils.reparameterize_model``.
2. ``mmcv.cnn.fuse_conv_bn`` folds batch norms into the convolutions in front of them.

``fuse_conv_bn`` takes modules in the order they are registered, not called. It goes
wrong if another layer runs in between, as in ``Sequential(conv, act, bn)``, or if a
convolution is shared or computes its weight. So outputs before and after are compared.

Layer norms and group norms remain, as do batch norms after anything but a ``Conv2d``.
EcoFormer has nothing to fuse: it has no batch norms, and any change in rounding would
flip bits of its hash codes.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmcv.cnn import fuse_conv_bn
from timm.layers import BatchNormAct2d
from timm.utils import reparameterize_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..errors import ExecutionError, InputError, explain
from .verification import relative_error, tensors_of

NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)
TOLERANCE = 1e4  # largest relative error of an output, in units of machine epsilon


@dataclass
class FusionReport:
    """What :func:`fuse` changed.

    Args:
        converted (list[str]): Names of the modules that simplified themselves.
        folded (int): Number of batch norms that are gone.
        left (dict[str, list[str]]): Names of the norms that remain, by class.
        parameters (tuple[int, int]): Number of parameters before and after.
        deviation (float): Largest relative error of an output.
    """
    converted: list[str]
    folded: int
    left: dict[str, list[str]]
    parameters: tuple[int, int]
    deviation: float

    def __str__(self) -> str:
        left = ', '.join(f'{len(names)} {kind}' for kind, names in self.left.items())
        before, after = self.parameters
        return (f'{len(self.converted)} modules converted, {self.folded} batch norms '
                f'folded, {left or "no norms"} left; {before / 1e6:.3f} M parameters '
                f'before, {after / 1e6:.3f} M after; deviation {self.deviation:.0e}')


@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # TF32 exceeds rounding
@torch.inference_mode(False)
@torch.no_grad()
def fuse(model: nn.Module, x: Tensor,
         run: Callable[[nn.Module, Tensor], Any] | None = None) -> FusionReport:
    """Fuse a model in place, for inference only.

    Args:
        model (nn.Module): Any model. Modules that ``run`` does not reach are fused too,
            but not verified.
        x (Tensor): Image to verify outputs with, (1, 3, H, W), on the model's device.
        run (Callable, optional): Calls the model with an image and returns tensors,
            possibly nested. Defaults to None, ``model(x)``.

    Returns:
        FusionReport: What was fused, and what remains.

    Raises:
        InputError: If the model returns no tensors, or NaN or infinity.
        ExecutionError: If fusing fails, or changes outputs by more than rounding. The
            model must not be used then.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> fuse(model, torch.rand(1, 3, 8, 8)).folded
        1
    """
    model.eval()
    name, run = type(model).__name__, run or nn.Module.__call__
    num_parameters, num_norms = _count_parameters(model), _count_batch_norms(model)
    reference = tensors_of(run(model, x.clone()))
    if not reference:
        raise InputError(f'{name} returns no tensors to verify fusing with; fuse a '
                         'part of it, such as its backbone.')
    if not all(tensor.isfinite().all() for tensor in reference):
        raise InputError(f'{name} returns NaN or infinity for this image, so fusing '
                         'cannot be verified; expected trained weights, or untrained '
                         'ones after mm_efficient.deploy.randomize().')
    with explain(f'{name} cannot be fused', 'Use the model as it is.'):
        converted = _switch_to_deploy(model)
        model.eval()  # new modules, too
        _compare(tensors_of(run(model, x.clone())), reference, 'switch_to_deploy()')
        _fold_batch_norms(model)
        deviation = _compare(
            tensors_of(run(model, x.clone())), reference, 'fuse_conv_bn()')
    model.requires_grad_(False)
    return FusionReport(
        converted, num_norms - _count_batch_norms(model), _remaining_norms(model),
        (num_parameters, _count_parameters(model)), deviation)


def _count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _count_batch_norms(model: nn.Module) -> int:
    return sum(isinstance(module, _BatchNorm) for module in model.modules())


def _remaining_norms(model: nn.Module) -> dict[str, list[str]]:
    """Names of all norms by class."""
    names: dict[str, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, NORMS):
            names.setdefault(type(module).__name__, []).append(name)
    return names


def _compare(outputs: Sequence[Tensor], reference: Sequence[Tensor], step: str
             ) -> float:
    """Largest relative error of an output; an error unless it is rounding."""
    worst = 0.
    for i, (y, z) in enumerate(zip(outputs, reference, strict=True)):
        if not z.is_floating_point():
            continue
        error = relative_error(y, z)
        if not error <= TOLERANCE * torch.finfo(z.dtype).eps:
            raise ExecutionError(
                f'{step} changes output {i} of {len(outputs)} by {error:.1e} of its '
                'largest magnitude, expected rounding errors; use the model as it is.')
        worst = max(worst, error)
    return worst


def _switch_to_deploy(model: Any, name: str = '') -> list[str]:
    """Let modules simplify themselves; returns their names.

    ``switch_to_deploy`` of a module from outside timm converts its submodules too.
    """
    if type(model).__module__.startswith('timm.'):
        reparameterize_model(model, inplace=True)
        return []
    if hasattr(model, 'switch_to_deploy'):
        model.switch_to_deploy()
        return [name]
    prefix = f'{name}.' if name else ''
    return [converted for child_name, child in model.named_children()
            for converted in _switch_to_deploy(child, prefix + child_name)]


def _fold_batch_norms(model: nn.Module) -> None:
    """Fold with MMCV, which drops the activations inside timm's batch norms."""
    activations = {name: nn.Sequential(norm.drop, norm.act).eval()
                   for name, norm in model.named_modules()
                   if isinstance(norm, BatchNormAct2d)}
    fuse_conv_bn(model)
    for name, activation in activations.items():
        if type(model.get_submodule(name)) is nn.Identity:
            parent, _, child = name.rpartition('.')
            setattr(model.get_submodule(parent), child, activation)
