"""Randomness derived from (seed, position), so that resuming does not change a run.

MMEngine restores weights, optimizer and sampler when it resumes a run, but not the
random state of the main process and of the data workers. Here the random augmentation
of a sample is derived from (seed, epoch, position in the epoch), whatever the number of
workers and of processes, and the randomness of the model from (seed, rank, iteration).
"""
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_dist_info, get_rank
from mmengine.hooks import Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS, TRANSFORMS
from mmengine.runner import Runner
from torch.utils.data import Sampler

# Keep the random numbers of the model independent of those of the samples.
_SAMPLE_STREAM = 0
_MODEL_STREAM = 0x6D6F64656C


def seed_everything(*entropy: int) -> None:
    """Seed Python, NumPy and PyTorch (every device) from integers.

    Args:
        *entropy (int): Non-negative integers. Different ones give independent states.
    """
    state = np.random.SeedSequence(entropy).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.manual_seed(int(state[2]) << 32 | int(state[3]))


@HOOKS.register_module()
class SeedIterationHook(Hook):
    """Derive the randomness of each training iteration from its number.

    A resumed run then has the same stochastic depth, dropout, sampled proposals and
    mixup as an uninterrupted one.
    """

    priority = 'VERY_HIGH'  # before any hook that might use random numbers

    def before_train_iter(self, runner: Runner, batch_idx: int,
                          data_batch: Any = None) -> None:
        """Seed Python, NumPy and PyTorch for the coming iteration."""
        seed_everything(_MODEL_STREAM, runner.seed, get_rank(), runner.iter)


class SampleIndex(int):
    """Index of a sample with the integers its randomness is derived from.

    Args:
        index (int): Index in the data set.
        entropy (tuple[int, ...], optional): Seed, stream, epoch and position. Defaults
            to None, which leaves the random state alone.
        resolution (int, optional): Image side of the batch in pixels, see
            :class:`~mm_efficient.engine.ResolutionBatchSampler`.
            Defaults to None.
    """
    entropy: tuple[int, ...] | None
    resolution: int | None

    def __new__(cls, index: int, entropy: tuple[int, ...] | None = None,
                resolution: int | None = None) -> 'SampleIndex':
        self = super().__new__(cls, index)
        self.entropy = entropy
        self.resolution = resolution
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return SampleIndex, (int(self), self.entropy, self.resolution)


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """Give every index of another sampler a random seed of its own.

    Needs :class:`SeedSample` as first transform of the pipeline. Data set wrappers that
    compute a new index (``RepeatDataset``, ``ConcatDataset``) lose the seed; their
    samples are as random as without this sampler.

    Args:
        dataset (Sized): The data set.
        sampler (dict): Config of the sampler that chooses the indices.
        seed (int, optional): Seed of the run; passed by MMEngine. Defaults to
            None, a seed shared by all processes.
    """

    def __init__(self, dataset: Any, sampler: dict[str, Any],
                 seed: int | None = None) -> None:
        self.dataset = dataset
        self.sampler = DATA_SAMPLERS.build(
            sampler, default_args=dict(dataset=dataset, seed=seed))
        self.seed = self.sampler.seed if seed is None else seed
        self.skipped = 0

    @property
    def epoch(self) -> int:
        """The epoch, 0 for samplers without one."""
        return getattr(self.sampler, 'epoch', 0)

    def __iter__(self) -> Iterator[SampleIndex]:
        # MMEngine's samplers deal the indices of an epoch to the processes in turn
        rank, world_size = get_dist_info()
        for number, index in enumerate(self.sampler, self.skipped):
            position = number * world_size + rank
            yield SampleIndex(index, (self.seed, _SAMPLE_STREAM, self.epoch, position))

    def __len__(self) -> int:
        return len(self.sampler)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.sampler.set_epoch(epoch)

    def __getattr__(self, name: str) -> Any:
        # Runners that can resume without loading the data already trained on look for
        # ``skip``. It exists if the inner sampler has it.
        if name == 'skip' and hasattr(self.__dict__.get('sampler'), 'skip'):
            return self._skip
        raise AttributeError(
            f'{type(self).__name__!r} object has no attribute {name!r}')

    def _skip(self, num_samples: int) -> None:
        self.sampler.skip(num_samples)
        self.skipped = num_samples


@TRANSFORMS.register_module()
class SeedSample:
    """Seed the random augmentations that follow in the pipeline.

    Required keys: ``sample_idx``, a :class:`SampleIndex` from :class:`SeededSampler`.
    It becomes a plain integer. Added keys: ``batch_resolution``, if the batch has one.
    """

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        index = results.get('sample_idx')
        if isinstance(index, SampleIndex):
            if index.entropy is not None:
                seed_everything(*index.entropy)
            if index.resolution is not None:
                results['batch_resolution'] = index.resolution
            results['sample_idx'] = int(index)
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'
