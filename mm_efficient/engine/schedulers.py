"""Learning-rate schedules."""
import math
from typing import Any

from mmengine.optim import BaseOptimWrapper
from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS
from torch.optim import Optimizer


@PARAM_SCHEDULERS.register_module()
class WarmupCosineLR(LRSchedulerMixin, _ParamScheduler):
    """Linear warmup from an absolute learning rate, then a half-period cosine.

    The schedule of timm's trainers (``timm.scheduler.CosineLRScheduler``), which
    MMEngine's schedulers cannot express: their warmup starts at a fraction of the
    learning rate and ends one step early, and their cosine starts at its maximum when
    the warmup ends, while timm's starts at step 0. For 30 epochs with 5 of
    warmup, the learning rates differ by 7 %.

    Args:
        optimizer (Optimizer | BaseOptimWrapper): The optimizer.
        warmup (int): Steps of warmup. The first step after them has the full learning
            rate, or that of the cosine.
        T_max (int): Steps of the cosine.
        warmup_lr_init (float): Learning rate of the first step, not scaled with the
            batch size. Defaults to 0.
        cosine_begin (int): First step of the cosine: 0 as in timm, or ``warmup`` for a
            whole one after the warmup. Defaults to 0.
        eta_min (float): Learning rate at the end of the cosine and after it.
            Defaults to 0.
        begin (int): First scheduled step. Defaults to 0.
        end (int): Step at which scheduling stops. Defaults to ``INF``.
        last_step (int): Index of the last step. Defaults to -1.
        by_epoch (bool): Whether a step is an epoch. With
            ``convert_to_iter_based=True`` in a config, the numbers are epochs and the
            steps are iterations. Defaults to True.
        verbose (bool): Whether to print every value. Defaults to False.
    """

    def __init__(self, optimizer: Optimizer | BaseOptimWrapper, warmup: int, T_max: int,
                 warmup_lr_init: float = 0., cosine_begin: int = 0, eta_min: float = 0.,
                 begin: int = 0, end: int = INF, last_step: int = -1,
                 by_epoch: bool = True, verbose: bool = False) -> None:
        self.warmup = warmup
        self.T_max = T_max
        self.warmup_lr_init = warmup_lr_init
        self.cosine_begin = cosine_begin
        self.eta_min = eta_min
        super().__init__(optimizer, begin, end, last_step, by_epoch, verbose)

    @classmethod
    def build_iter_from_epoch(cls, *, epoch_length: int | None = None,
                              by_epoch: bool = True, **settings: Any
                              ) -> 'WarmupCosineLR':
        """Build a schedule in iterations from one in epochs, as MMEngine calls it.

        Args:
            epoch_length (int): Iterations per epoch.
            by_epoch (bool): Ignored.
            **settings: Arguments of the class, steps in epochs.

        Raises:
            ValueError: If an epoch has no iterations.
        """
        if not epoch_length:
            raise ValueError('an epoch needs at least one iteration, got '
                             f'{epoch_length}: does the data set have fewer images '
                             'than a batch?')
        for key in ('warmup', 'T_max', 'cosine_begin', 'begin', 'end'):
            if settings.get(key, INF) != INF:
                settings[key] = round(settings[key] * epoch_length)
        return cls(by_epoch=False, **settings)

    def _get_value(self) -> list[float]:
        """Compute the learning rate of every parameter group."""
        step = self.last_step
        if step < self.warmup:
            start, share = self.warmup_lr_init, step / self.warmup
        else:
            phase = min(1., (step - self.cosine_begin) / self.T_max)
            start, share = self.eta_min, (1 + math.cos(math.pi * phase)) / 2
        return [start + share * (value - start) for value in self.base_values]
