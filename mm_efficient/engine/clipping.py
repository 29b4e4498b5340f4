"""Gradient clipping that MMEngine does not have."""
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from timm.utils.agc import adaptive_clip_grad


class _AdaptiveClipping:
    """Clips by timm's function instead of by norm or value."""

    def _clip_grad(self) -> None:
        adaptive_clip_grad(
            [parameter for group in self.optimizer.param_groups
             for parameter in group['params'] if parameter.grad is not None],
            **self.clip_grad_kwargs)


@OPTIM_WRAPPERS.register_module()
class AGCOptimWrapper(_AdaptiveClipping, OptimWrapper):
    """Optimizer with adaptive gradient clipping, https://arxiv.org/abs/2102.06171.

    The gradient of every output unit of a layer is limited to a share of the norm of
    the unit's weights. Clipping by norm or value needs no more than MMEngine's
    ``OptimWrapper(clip_grad=dict(type='value', clip_value=...))``.

    Args:
        optimizer (Optimizer): The optimizer.
        accumulative_counts (int): Iterations per update. Defaults to 1.
        clip_grad (dict, optional): Arguments of
            ``timm.utils.agc.adaptive_clip_grad``: ``clip_factor``, the share;
            ``eps``, the least norm of weights; and ``norm_type``. Defaults to None,
            ``dict(clip_factor=0.01)``.
    """

    def __init__(self, optimizer, accumulative_counts=1, clip_grad=None):
        super().__init__(optimizer, accumulative_counts,
                         clip_grad or dict(clip_factor=0.01))


@OPTIM_WRAPPERS.register_module()
class AmpAGCOptimWrapper(_AdaptiveClipping, AmpOptimWrapper):
    """:class:`AGCOptimWrapper` with mixed precision; gradients are unscaled first.

    Args:
        loss_scale (str | float | dict): As of ``AmpOptimWrapper``.
            Defaults to 'dynamic'.
        dtype (str, optional): As of ``AmpOptimWrapper``. Defaults to None.
        optimizer (Optimizer): The optimizer.
        accumulative_counts (int): Iterations per update. Defaults to 1.
        clip_grad (dict, optional): As of :class:`AGCOptimWrapper`.
            Defaults to None.
    """

    def __init__(self, loss_scale='dynamic', dtype=None, *, optimizer,
                 accumulative_counts=1, clip_grad=None):
        super().__init__(
            loss_scale=loss_scale, dtype=dtype, optimizer=optimizer,
            accumulative_counts=accumulative_counts,
            clip_grad=clip_grad or dict(clip_factor=0.01))
