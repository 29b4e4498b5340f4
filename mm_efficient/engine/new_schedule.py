"""Resuming with another batch size, learning rate or schedule."""
import warnings
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import IterBasedTrainLoop, Runner


@HOOKS.register_module()
class NewScheduleHook(Hook):
    """Resume with the learning rate and the schedules of the config.

    MMEngine restores those of the checkpoint, whatever the config says. With this hook
    the run goes on where the config's schedule is after as many epochs, or after as
    many iterations in a run that counts these. Weights and the optimizer's averages are
    those of the checkpoint.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Replace learning rates and schedules in a checkpoint to resume from."""
        if not runner._resume:
            return
        meta, per_epoch = checkpoint['meta'], len(runner.train_dataloader)
        if not isinstance(runner.train_loop, IterBasedTrainLoop):
            meta['iter'] = meta['epoch'] * per_epoch
        schedulers = runner.param_schedulers or []
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # no optimizer step before
            for iteration in range(1, meta['iter'] + 1):
                for scheduler in schedulers:
                    if not scheduler.by_epoch or iteration % per_epoch == 0:
                        scheduler.step()
        checkpoint['param_schedulers'] = [s.state_dict() for s in schedulers]
        new = runner.optim_wrapper.state_dict()
        for before, now in zip(checkpoint['optimizer']['param_groups'],
                               new['param_groups']):
            before.update({**now, 'params': before['params']})
        if 'base_param_settings' in new:
            checkpoint['optimizer']['base_param_settings'] = new['base_param_settings']
        rates = sorted({group['lr'] for group in new['param_groups']})
        runner.logger.info(f'Resuming at iteration {meta["iter"]} with the schedules '
                           f'of the config: learning rates {rates}')
