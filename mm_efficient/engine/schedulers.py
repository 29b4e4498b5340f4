"""Learning-rate schedules."""
import math

from mmengine.optim.scheduler.lr_scheduler import LRSchedulerMixin
from mmengine.optim.scheduler.param_scheduler import INF, _ParamScheduler
from mmengine.registry import PARAM_SCHEDULERS


@PARAM_SCHEDULERS.register_module()
class WarmUpCosineLR(LRSchedulerMixin, _ParamScheduler):
    """Linear warm-up from an absolute value, then half a cosine period.

    The schedule of timm's trainers (``timm.scheduler.CosineLRScheduler``), which
    MMEngine's schedulers cannot express: their warm-up starts at a fraction of the
    learning rate and ends one step early, and their cosine starts at its maximum
    where the warm-up ends, whereas timm's has been running meanwhile. For 30 epochs
    with 5 of warm-up that is a difference of 7 %.

    Args:
        optimizer (Optimizer | BaseOptimWrapper): The optimizer.
        warm_up (int): Steps of warm-up; the learning rate is reached, or the cosine
            taken up, right behind them.
        T_max (int): Steps of the half period.
        warm_up_lr (float): Learning rate of the first step, not scaled with the
            batch. Defaults to 0.
        cosine_begin (int): Step at which the cosine starts: 0 as in timm, or
            ``warm_up`` to have it whole. Defaults to 0.
        eta_min (float): Learning rate at the end of the cosine and from there on.
            Defaults to 0.
        begin (int): First step that is scheduled. Defaults to 0.
        end (int): Step at which scheduling stops. Defaults to ``INF``.
        last_step (int): Index of the last step. Defaults to -1.
        by_epoch (bool): Whether a step is an epoch. With
            ``convert_to_iter_based=True`` in a config the numbers are epochs and
            the steps iterations. Defaults to True.
        verbose (bool): Print every value. Defaults to False.
    """

    def __init__(self, optimizer, warm_up, T_max, warm_up_lr=0., cosine_begin=0,
                 eta_min=0., begin=0, end=INF, last_step=-1, by_epoch=True,
                 verbose=False):
        self.warm_up = warm_up
        self.T_max = T_max
        self.warm_up_lr = warm_up_lr
        self.cosine_begin = cosine_begin
        self.eta_min = eta_min
        super().__init__(optimizer, begin, end, last_step, by_epoch, verbose)

    @classmethod
    def build_iter_from_epoch(cls, *args, warm_up, T_max, cosine_begin=0, begin=0,
                              end=INF, by_epoch=True, epoch_length=None, **kwargs):
        """Build a schedule by iterations from numbers of epochs.

        Raises:
            ValueError: If an epoch has no iteration.
        """
        if not epoch_length:
            raise ValueError('an epoch needs at least one iteration, got '
                             f'{epoch_length}: has the data set fewer images than a '
                             'batch?')
        warm_up, T_max, cosine_begin, begin = (
            round(n * epoch_length) for n in (warm_up, T_max, cosine_begin, begin))
        end = end if end == INF else round(end * epoch_length)
        return cls(*args, warm_up=warm_up, T_max=T_max, cosine_begin=cosine_begin,
                   begin=begin, end=end, by_epoch=False, **kwargs)

    def _get_value(self):
        step = self.last_step
        if step < self.warm_up:
            share = step / self.warm_up
            return [self.warm_up_lr + share * (value - self.warm_up_lr)
                    for value in self.base_values]
        phase = min(1., (step - self.cosine_begin) / self.T_max)
        share = (1 + math.cos(math.pi * phase)) / 2
        return [self.eta_min + share * (value - self.eta_min)
                for value in self.base_values]
