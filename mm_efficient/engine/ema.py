"""Averages of the weights over the training."""
import math

from mmengine.model import ExponentialMovingAverage
from mmengine.registry import MODELS

NORM_STATISTICS = ('running_mean', 'running_var')


@MODELS.register_module()
class WarmUpEMA(ExponentialMovingAverage):
    """Exponential moving average whose decay grows to its value.

    After ``s`` updates the decay is ``(1 - momentum) * (1 - exp(-s / warm_up))``, as
    in EfficientViT's trainer (https://arxiv.org/abs/2205.14756), so that the average
    soon forgets the initial weights. To be used by an ``EMAHook``::

        custom_hooks = [
            dict(type='EMAHook', ema_type='WarmUpEMA', momentum=2e-4, warm_up=2000)
        ]

    Parameters and the statistics of batch norms are averaged. Other buffers, such as
    counters or the hash functions of EcoFormer, have no meaningful average and are
    copied.

    Args:
        model (nn.Module): The model to average.
        momentum (float): One minus the decay that is reached. Defaults to 2e-4.
        warm_up (float): Updates in which the decay reaches 63 % of it.
            Defaults to 2000.
        interval (int): Updates happen every so many iterations. Defaults to 1.
        device (torch.device, optional): Where to keep the average. Defaults to None,
            the device of the model.

    Raises:
        ValueError: If ``warm_up`` is not positive.
    """

    def __init__(self, model, momentum=2e-4, warm_up=2000, interval=1, device=None):
        super().__init__(model, momentum, interval, device, update_buffers=True)
        if warm_up <= 0:
            raise ValueError(f'warm_up must be positive, got {warm_up}')
        self.warm_up = warm_up
        parameters = {p.data_ptr() for p in self.module.parameters()}
        state = self.avg_parameters
        self.avg_parameters = {
            key: tensor for key, tensor in state.items()
            if tensor.data_ptr() in parameters or key.endswith(NORM_STATISTICS)
        }
        self.copied = {key: tensor for key, tensor in state.items()
                       if key not in self.avg_parameters}

    def decay(self, steps):
        """Share of the average that update number ``steps`` keeps."""
        return (1 - self.momentum) * (1 - math.exp(-steps / self.warm_up))

    def update_parameters(self, model):
        """Take the weights of ``model`` into the average."""
        # once for all tensors: reading the counter waits for the device
        self.current_momentum = 1 - self.decay(self.steps.item())
        super().update_parameters(model)
        source = model.state_dict()
        for key, tensor in self.copied.items():
            tensor.copy_(source[key])

    def avg_func(self, averaged_param, source_param, steps):
        """Update one tensor in place."""
        averaged_param.lerp_(source_param, self.current_momentum)
