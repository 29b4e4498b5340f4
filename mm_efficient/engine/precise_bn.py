"""Batch-norm statistics of the weights that are evaluated."""
import copy
from functools import partial

from mmengine.dataset import worker_init_fn
from mmengine.dist import get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from mmpretrain.engine.hooks.precise_bn_hook import update_bn_stats
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import BatchSampler, DataLoader

from .progress import averaged_model, unwrapped_model
from .resolution import ResolutionBatchSampler
from .seeding import SeededSampler

_KEPT = 'averaged_norm_statistics'  # in checkpoints


@HOOKS.register_module()
class ReestimateBNHook(Hook):
    """Re-estimate batch-norm statistics before every evaluation.

    Running statistics lag behind the weights, fit averaged weights badly, and mix
    the resolutions of a training at several. MMPretrain's ``PreciseBNHook`` changes
    the model in training; this hook computes with the same function what is to be
    evaluated, the averaged weights if an ``EMAHook`` keeps them, and puts everything
    back afterwards, so that the training does not depend on it. Checkpoints have the
    re-estimated statistics with the weights to evaluate, and the others to resume.

    Stochastic depth and dropout are off, augmentations of the pipeline on, and the
    images always the same ones, chosen by the seed.

    Args:
        num_samples (int): Training images to use, at most. Defaults to 16000.
        batch_size (int): Images per batch and process. Defaults to 100.
        resolution (int, optional): Side in pixels for pipelines with
            :class:`~mm_efficient.engine.BatchResolution`. Defaults to None.
        interval (int): Epochs between two estimates; after the last epoch there is
            always one, and before an evaluation too. Defaults to 1.
        test (bool): Whether to do it before a test too, for which the training data
            has to be there. Weights that were saved with the statistics of this
            resolution do not need it. Defaults to False.
    """

    priority = 'BELOW_NORMAL'  # after EMAHook, before CheckpointHook

    def __init__(self, num_samples=16000, batch_size=100, resolution=None, interval=1,
                 test=False):
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.resolution = resolution
        self.interval = interval
        self.test = test
        self.loader = None
        self.statistics = None  # of the current weights

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Forget statistics of weights that have changed."""
        self.statistics = None

    def after_train_epoch(self, runner):
        """Estimate for the checkpoint and the evaluation that may follow."""
        if self.every_n_epochs(runner, self.interval) or \
                self.is_last_train_epoch(runner):
            self._estimate(runner, averaged_model(runner) or unwrapped_model(runner),
                           runner.train_dataloader)

    def before_val_epoch(self, runner):
        """Evaluate with re-estimated statistics."""
        model = unwrapped_model(runner)
        self.kept = _statistics(model)
        if self.statistics is None:
            self._estimate(runner, model, runner.train_dataloader)
        _install(model, self.statistics)

    def after_val_epoch(self, runner, metrics=None):
        """Put back what was there before; ``EMAHook`` has swapped the models."""
        _install(averaged_model(runner) or unwrapped_model(runner), self.kept)

    def before_test_epoch(self, runner):
        """Test with re-estimated statistics, if asked to."""
        if self.test:
            model = unwrapped_model(runner)
            self._estimate(runner, model, Runner.build_dataloader(
                runner.cfg.train_dataloader, seed=runner.seed))
            _install(model, self.statistics)

    def before_save_checkpoint(self, runner, checkpoint):
        """Save the statistics with the weights they belong to."""
        if self.statistics is None:
            return
        state = checkpoint['state_dict']
        checkpoint[_KEPT] = {key: state[key] for key in self.statistics}
        state.update((key, value.to(state[key].device))
                     for key, value in self.statistics.items())

    def after_load_checkpoint(self, runner, checkpoint):
        """Resume with the statistics of the training."""
        kept = checkpoint.pop(_KEPT, None)
        if kept is None or not runner._resume:
            return
        averaged = averaged_model(runner)
        if averaged is None:
            checkpoint['state_dict'].update(kept)
        else:
            _install(averaged, kept)

    def _estimate(self, runner, model, loader):
        """Set ``statistics`` to those of ``model``, which stays as it is."""
        if self.loader is None:
            self.loader = self._make_loader(loader, runner.seed)
        model = copy.deepcopy(model).eval()
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                module.train()
        runner.logger.info('Re-estimating batch-norm statistics')
        update_bn_stats(model, self.loader, self.num_samples, runner.logger)
        self.statistics = _statistics(model)

    def _make_loader(self, loader, seed):
        """Loader of a fixed choice of training images, like ``loader``."""
        sampler = SeededSampler(
            loader.dataset, dict(type='DefaultSampler', shuffle=True), seed)
        batch_size = max(1, min(
            self.batch_size, self.num_samples // get_world_size(), len(sampler)))
        if self.resolution is None:
            batches = BatchSampler(sampler, batch_size, drop_last=True)
        else:
            batches = ResolutionBatchSampler(
                sampler, batch_size, [self.resolution], drop_last=True)
        return _Loader(
            loader.dataset,
            batch_sampler=batches,
            num_workers=loader.num_workers,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
            worker_init_fn=partial(
                worker_init_fn, num_workers=loader.num_workers, rank=get_rank(),
                seed=seed))


class _Loader(DataLoader):
    """Tells the size of its batches, which PyTorch's does only without a
    ``batch_sampler``, to MMPretrain's function.
    """

    @property
    def batch_size(self):
        """Samples per batch."""
        return self.batch_sampler.batch_size

    @batch_size.setter
    def batch_size(self, value):
        pass


def _statistics(model):
    """Copies of the statistics of all batch norms, by key of the state dict."""
    return {
        f'{name}.{key}': getattr(module, key).clone()
        for name, module in model.named_modules() if isinstance(module, _BatchNorm)
        for key in ('running_mean', 'running_var')
    }


def _install(model, statistics):
    """Write statistics into the batch norms of a model."""
    buffers = dict(model.named_buffers())
    for key, value in statistics.items():
        buffers[key].copy_(value)
