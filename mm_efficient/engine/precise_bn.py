"""Batch-norm statistics that match the weights being evaluated."""
import copy
from functools import partial
from itertools import islice
from typing import Any

from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.engine.hooks.precise_bn_hook import update_bn_stats
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader

from .progress import averaged_model, unwrapped_model
from .seeding import SampleIndex, SeededSampler

_KEPT = 'averaged_norm_statistics'  # key in checkpoints
Statistics = dict[str, Tensor]


@HOOKS.register_module()
class PreciseBNEvalHook(Hook):
    """Re-estimate batch-norm statistics for every evaluation, not for training.

    Running statistics lag behind the weights, do not fit averaged weights, and mix the
    resolutions of multi-resolution training. MMPretrain's ``PreciseBNHook`` overwrites
    those of the model in training. This hook uses the same function on the weights to
    evaluate, which are the averaged ones if there is an ``EMAHook``, and restores the
    statistics afterwards, so it does not affect training. Checkpoints hold the
    re-estimated statistics together with the weights to evaluate, and the others for
    resuming.

    Stochastic depth and dropout are off, training augmentation is on, and the seed
    determines the images, which are the same every time.

    Args:
        num_samples (int): Maximum number of training images. Defaults to 16000.
        batch_size (int): Images per batch and process. Defaults to 100.
        resolution (int, optional): Image side in pixels, for pipelines with
            :class:`~mm_efficient.engine.BatchResolution`. Defaults to None.
        interval (int): Epochs between estimates. There is always one after the last
            epoch and before an evaluation. Defaults to 1.
        test (bool): Whether to re-estimate before a test too, which needs the training
            data. Weights saved with statistics of this resolution do not need it.
            Defaults to False.
    """

    priority = 'BELOW_NORMAL'  # after EMAHook, before CheckpointHook

    def __init__(self, num_samples: int = 16000, batch_size: int = 100,
                 resolution: int | None = None, interval: int = 1,
                 test: bool = False) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.resolution = resolution
        self.interval = interval
        self.test = test
        self.loader: DataLoader | None = None
        self.statistics: Statistics | None = None  # None: the weights have changed

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Discard statistics of weights that have changed."""
        self.statistics = None

    def after_train_epoch(self, runner: Runner) -> None:
        """Estimate for the checkpoint and the evaluation that may follow."""
        if self.every_n_epochs(runner, self.interval) or \
                self.is_last_train_epoch(runner):
            self._estimate(runner, averaged_model(runner) or unwrapped_model(runner),
                           runner.train_dataloader)

    def before_val_epoch(self, runner: Runner) -> None:
        """Install re-estimated statistics; ``EMAHook`` has swapped the models."""
        model = unwrapped_model(runner)
        self.kept = _statistics(model)
        statistics = self.statistics
        if statistics is None:
            statistics = self._estimate(runner, model, runner.train_dataloader)
        _install(model, statistics)

    def after_val_epoch(self, runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        """Restore the statistics; ``EMAHook`` has swapped the models back."""
        _install(averaged_model(runner) or unwrapped_model(runner), self.kept)

    def before_test_epoch(self, runner: Runner) -> None:
        """Install re-estimated statistics if ``test`` is set."""
        if self.test:
            model = unwrapped_model(runner)
            loader = Runner.build_dataloader(
                runner.cfg.train_dataloader, seed=runner.seed)
            _install(model, self._estimate(runner, model, loader))

    def before_save_checkpoint(self, runner: Runner,
                               checkpoint: dict[str, Any]) -> None:
        """Save the re-estimated statistics, and the original ones separately."""
        if self.statistics is None:
            return
        state = checkpoint['state_dict']
        checkpoint[_KEPT] = {key: state[key] for key in self.statistics}
        state.update((key, value.to(state[key].device))
                     for key, value in self.statistics.items())

    def after_load_checkpoint(self, runner: Runner,
                              checkpoint: dict[str, Any]) -> None:
        """Resume with the training statistics."""
        kept = checkpoint.pop(_KEPT, None)
        if kept is None or not runner._resume:
            return
        averaged = averaged_model(runner)
        if averaged is None:
            checkpoint['state_dict'].update(kept)
        else:
            _install(averaged, kept)

    def _estimate(self, runner: Runner, model: nn.Module,
                  loader: DataLoader) -> Statistics:
        """Set ``statistics`` to those of ``model``, which stays unchanged."""
        before = _statistics(model)
        if not before:  # such as the model that plots a schedule, without images
            self.statistics = {}
            return self.statistics
        if self.loader is None:
            self.loader = self._make_loader(loader, runner.seed)
        model = copy.deepcopy(model).eval()
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.train()
        runner.logger.info('Re-estimating batch-norm statistics')
        update_bn_stats(model, self.loader, self.num_samples, runner.logger)
        self.statistics = _statistics(model)
        if not all(value.isfinite().all() for value in self.statistics.values()):
            runner.logger.warning('The re-estimated batch-norm statistics are not '
                                  'finite: the running ones are kept')
            self.statistics = before
        return self.statistics

    def _make_loader(self, loader: DataLoader, seed: int) -> DataLoader:
        """Build a loader like ``loader`` over a fixed set of training images."""
        sampler = SeededSampler(
            loader.dataset, dict(type='DefaultSampler', shuffle=True), seed)
        count = min(len(sampler), max(1, self.num_samples // get_world_size()))
        return DataLoader(
            loader.dataset,
            batch_size=min(self.batch_size, count),
            sampler=[SampleIndex(index, index.entropy, self.resolution)
                     for index in islice(sampler, count)],
            drop_last=True,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=partial(
                worker_init_fn, num_workers=loader.num_workers, rank=get_rank(),
                seed=seed))


def _statistics(model: nn.Module) -> Statistics:
    """Copy the statistics of all batch norms, by state-dict key."""
    return {
        f'{name}.{key}': getattr(module, key).clone()
        for name, module in model.named_modules() if isinstance(module, _BatchNorm)
        for key in ('running_mean', 'running_var')
    }


def _install(model: nn.Module, statistics: Statistics) -> None:
    """Write statistics into the batch norms of a model."""
    buffers = dict(model.named_buffers())
    for key, value in statistics.items():
        buffers[key].copy_(value)
