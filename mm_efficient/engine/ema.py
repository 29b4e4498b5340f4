"""Exponential moving average (EMA) of the weights."""
import math

import torch
from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS
from torch import Tensor, nn

NORM_STATISTICS = ('running_mean', 'running_var')


@MODELS.register_module()
class WarmupEMA(ExponentialMovingAverage):
    """EMA whose decay warms up, as in EfficientViT's and LowFormer's trainers.

    Update number ``n``, counted from 1, has the decay
    ``decay(n) = (1 - momentum) * (1 - exp(-n / warmup))``, so the average soon forgets
    the initial weights. The first update copies the weights, as in all of MMEngine's
    averages; the published one would keep ``decay(1)``, 0.05 %. Source:
    ``apps/utils/ema.py`` of https://github.com/mit-han-lab/efficientvit. Use it in an
    ``EMAHook``::

        custom_hooks = [
            dict(type='EMAHook', ema_type='WarmupEMA', momentum=2e-4, warmup=2000)
        ]

    MMDetection's ``ExpMomentumEMA`` has the same decay,
    ``1 - (momentum + (1 - momentum) * exp(-(1 + steps) / gamma))`` with
    ``steps = n - 1``. It is not used here because a classifier would need MMDetection
    for it, it waits for the GPU once per tensor, and it treats all buffers alike. Here
    batch-norm statistics are averaged like parameters, and other buffers, such as
    counters or EcoFormer's hash functions, which have no meaningful average, are
    copied.

    Args:
        model (nn.Module): The model to average.
        momentum (float): One minus the final decay. Defaults to 2e-4.
        warmup (float): Updates until the decay reaches 63 % of its final value.
            Defaults to 2000.
        interval (int): Iterations between updates. Defaults to 1.
        device (torch.device, optional): Where to keep the average. Defaults to None,
            the device of the model.

    Raises:
        ValueError: If ``warmup`` is not positive.
    """

    def __init__(self, model: nn.Module, momentum: float = 2e-4, warmup: float = 2000,
                 interval: int = 1, device: torch.device | None = None) -> None:
        super().__init__(model, momentum, interval, device, update_buffers=True)
        if warmup <= 0:
            raise ValueError(f'warmup must be positive, got {warmup}')
        self.warmup = warmup
        parameters = dict(self.module.named_parameters(remove_duplicate=False))
        state = self.module.state_dict()
        averaged = {key for key in state
                    if key in parameters or key.endswith(NORM_STATISTICS)}
        self.avg_parameters = {k: v for k, v in state.items() if k in averaged}
        self.copied = {k: v for k, v in state.items() if k not in averaged}

    def decay(self, update: int) -> float:
        """Weight of the previous average in an update, counted from 1."""
        return (1 - self.momentum) * (1 - math.exp(-update / self.warmup))

    def update_parameters(self, model: nn.Module) -> None:
        """Update the average with the weights of ``model``."""
        steps = self.steps.item()  # once, because reading it waits for the GPU
        source = model.state_dict()

        def pairs(tensors: dict[str, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
            return [*tensors.values()], [source[key].to(tensor.device)
                                         for key, tensor in tensors.items()]
        if steps == 0:
            torch._foreach_copy_(*pairs(self.avg_parameters))
        elif steps % self.interval == 0:
            torch._foreach_lerp_(*pairs(self.avg_parameters), 1 - self.decay(steps + 1))
        if self.copied:
            torch._foreach_copy_(*pairs(self.copied))
        self.steps += 1
