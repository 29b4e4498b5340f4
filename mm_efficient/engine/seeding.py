"""Training samples whose randomness depends on their position only.

MMEngine restores weights, optimizer and sampler when a training is resumed, but
not the random state of the data workers, so augmentations differ from those of
an uninterrupted run. Here the random augmentations of a sample follow from
(seed, rank, epoch, position in the epoch), whatever the number of workers.
"""
import random

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS, TRANSFORMS
from torch.utils.data import Sampler


def seed_everything(*entropy) -> None:
    """Seed Python, NumPy and PyTorch (every device) from integers.

    Args:
        *entropy (int): Non-negative integers; other integers give an
            independent state.
    """
    state = np.random.SeedSequence(entropy).generate_state(4)
    random.seed(int(state[0]))
    np.random.seed(state[1])
    torch.manual_seed(int(state[2]) << 32 | int(state[3]))


class SampleIndex(int):
    """Index of a sample that carries what its randomness follows from.

    Args:
        index (int): Index in the data set.
        entropy (tuple[int], optional): Seed, rank, epoch and position. Defaults to
            None, the random state is left as it is.
        resolution (int, optional): Side in pixels of the images of the batch, see
            :class:`~mm_efficient.engine.ResolutionBatchSampler`.
            Defaults to None.
    """

    def __new__(cls, index, entropy=None, resolution=None):
        self = super().__new__(cls, index)
        self.entropy = entropy
        self.resolution = resolution
        return self

    def __reduce__(self):
        return SampleIndex, (int(self), self.entropy, self.resolution)


@DATA_SAMPLERS.register_module()
class SeededSampler(Sampler):
    """Give every index of another sampler its own random seed.

    To be used with :class:`SeedSample` as first transform of the pipeline.
    Data set wrappers that compute a new index (``RepeatDataset``,
    ``ConcatDataset``) lose the seed; the sample is then as random as before.

    Args:
        dataset (Sized): The data set.
        sampler (dict): Config of the sampler that chooses the indices.
        seed (int, optional): Seed of the run; MMEngine passes it. Defaults to
            None, a seed shared by all processes.
    """

    def __init__(self, dataset, sampler, seed=None):
        self.dataset = dataset
        self.sampler = DATA_SAMPLERS.build(
            sampler, default_args=dict(dataset=dataset, seed=seed))
        self.seed = self.sampler.seed if seed is None else seed
        self.skipped = 0

    @property
    def epoch(self):
        """The epoch, 0 of samplers without."""
        return getattr(self.sampler, 'epoch', 0)

    def __iter__(self):
        for position, index in enumerate(self.sampler, self.skipped):
            yield SampleIndex(index, (self.seed, get_rank(), self.epoch, position))

    def __len__(self):
        return len(self.sampler)

    def set_epoch(self, epoch):
        """Choose the order of an epoch."""
        self.sampler.set_epoch(epoch)

    def __getattr__(self, name):
        # Engines that can resume without loading the data that was already
        # trained on look for ``skip``: it is there if the inner sampler's is.
        if name == 'skip' and hasattr(self.__dict__.get('sampler'), 'skip'):
            return self._skip
        raise AttributeError(
            f'{type(self).__name__!r} object has no attribute {name!r}')

    def _skip(self, num_samples):
        self.sampler.skip(num_samples)
        self.skipped = num_samples


@TRANSFORMS.register_module()
class SeedSample:
    """Seed the random augmentations that follow in the pipeline.

    Required keys: ``sample_idx``, a :class:`SampleIndex` made by
    :class:`SeededSampler`. It becomes a plain integer. Added keys:
    ``batch_resolution``, if one was drawn.
    """

    def __call__(self, results):
        index = results.get('sample_idx')
        if isinstance(index, SampleIndex):
            if index.entropy is not None:
                seed_everything(*index.entropy)
            if index.resolution is not None:
                results['batch_resolution'] = index.resolution
            results['sample_idx'] = int(index)
        return results

    def __repr__(self):
        return f'{type(self).__name__}()'
