"""Adaptive gradient clipping, which MMEngine lacks."""
from typing import Any

import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from timm.utils.agc import unitwise_norm
from torch import Tensor
from torch.optim import Optimizer


@torch.no_grad()
def adaptive_clip_grad(parameters: list[Tensor], clip_factor: float = 0.01,
                       eps: float = 1e-3, norm_type: float = 2.) -> None:
    """Clip gradients in place, as ``timm.utils.agc.adaptive_clip_grad`` with less work.

    Args:
        parameters (list[Tensor]): Parameters; those without a gradient are left out.
        clip_factor (float): Largest ratio of the norms of a unit's gradient and
            weights. Defaults to 0.01.
        eps (float): Lower bound on the norm of the weights. Defaults to 1e-3.
        norm_type (float): Order of the norms. Defaults to 2.
    """
    pairs = [(x, x.grad) for x in parameters if x.grad is not None]
    if not pairs:
        return
    weights, gradients = map(list, zip(*pairs))
    scales, norms = ([unitwise_norm(x, norm_type) for x in tensors]
                     for tensors in (weights, gradients))
    torch._foreach_clamp_min_(scales, eps)
    torch._foreach_mul_(scales, clip_factor)
    torch._foreach_clamp_min_(norms, 1e-6)
    torch._foreach_div_(scales, norms)
    torch._foreach_clamp_max_(scales, 1)
    torch._foreach_mul_(gradients, scales)


class _AdaptiveClipping:
    """Replaces clipping by norm or value with adaptive clipping."""
    optimizer: Optimizer
    clip_grad_kwargs: dict[str, Any]

    def _clip_grad(self) -> None:
        adaptive_clip_grad(
            [parameter for group in self.optimizer.param_groups
             for parameter in group['params'] if parameter.grad is not None],
            **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class AGCOptimWrapper(_AdaptiveClipping, OptimWrapper):
    """Optimizer with adaptive gradient clipping, https://arxiv.org/abs/2102.06171.

    Limits the gradient norm of each output unit of a layer to a fraction of the norm
    of the unit's weights. To clip by norm or value, use MMEngine's
    ``OptimWrapper(clip_grad=dict(type='value', clip_value=...))``.

    Args:
        optimizer (Optimizer): The optimizer.
        accumulative_counts (int): Iterations per update. Defaults to 1.
        clip_grad (dict, optional): Arguments of
            :func:`adaptive_clip_grad`: ``clip_factor``, the fraction;
            ``eps``, the lower bound on the weight norm; and ``norm_type``.
            Defaults to None, which means ``dict(clip_factor=0.01)``.
    """

    def __init__(self, optimizer: Optimizer, accumulative_counts: int = 1,
                 clip_grad: dict[str, Any] | None = None) -> None:
        super().__init__(optimizer, accumulative_counts,
                         clip_grad or dict(clip_factor=0.01))


@OPTIM_WRAPPERS.register_module()
class AmpAGCOptimWrapper(_AdaptiveClipping, AmpOptimWrapper):
    """:class:`AGCOptimWrapper` with mixed precision; unscales gradients first.

    Args:
        loss_scale (str | float | dict): See ``AmpOptimWrapper``.
            Defaults to 'dynamic'.
        dtype (str, optional): See ``AmpOptimWrapper``. Defaults to None.
        optimizer (Optimizer): The optimizer.
        accumulative_counts (int): Iterations per update. Defaults to 1.
        clip_grad (dict, optional): See :class:`AGCOptimWrapper`.
            Defaults to None.
    """

    def __init__(self, loss_scale: str | float | dict[str, Any] = 'dynamic',
                 dtype: str | None = None, *, optimizer: Optimizer,
                 accumulative_counts: int = 1,
                 clip_grad: dict[str, Any] | None = None) -> None:
        super().__init__(
            loss_scale=loss_scale, dtype=dtype, optimizer=optimizer,
            accumulative_counts=accumulative_counts,
            clip_grad=clip_grad or dict(clip_factor=0.01))
