"""Gradient accumulation that restarts every epoch."""
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class AccumulationRestartHook(Hook):
    """Restart gradient accumulation at the beginning of every epoch.

    For ``optim_wrapper=dict(accumulative_counts=...)``. Gradients left over at the end
    of an epoch are dropped. Checkpoints hold no gradients, so only then does a run
    resumed from one continue exactly as if it had not been interrupted.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Drop accumulated gradients and reset the counter."""
        wrapper = runner.optim_wrapper
        wrapper.zero_grad()
        # initialize_count_status would warn about batch norms every epoch
        wrapper._inner_count = 0
        wrapper._max_counts = -1  # no early update at the end of the training
