"""Multi-resolution training, one resolution per iteration."""
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from mmengine.dist import sync_random_seed
from mmengine.registry import DATA_SAMPLERS, TRANSFORMS
from mmpretrain.datasets.transforms import RandomResizedCrop
from torch.utils.data import BatchSampler

from .seeding import SampleIndex

# Keeps the random numbers of resolutions independent of those of the samples.
_RESOLUTION_STREAM = 0x73697A65
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')


@DATA_SAMPLERS.register_module()
class ResolutionBatchSampler(BatchSampler):
    """Choose a random resolution for every batch.

    It is derived from (seed, epoch, number of the batch), so it is the same in all
    processes and in a resumed run. The index of a sample carries it
    (:class:`~mm_efficient.engine.SampleIndex`) to :class:`BatchResolution`, the first
    transform of the pipeline::

        train_dataloader = dict(
            sampler=dict(type='DefaultSampler', shuffle=True),
            batch_sampler=dict(
                type='ResolutionBatchSampler', resolutions=[128, 160, 192, 224]),
            dataset=dict(pipeline=[
                dict(type='BatchResolution'), dict(type='LoadImageFromFile'),
                dict(type='BatchResizedCrop', scale=224), ...]))

    Args:
        sampler (Sampler): Chooses the indices; passed by MMEngine.
        batch_size (int): Samples per batch; passed by MMEngine.
        resolutions (Sequence[int]): Image sides in pixels, all equally likely.
        drop_last (bool): Whether to drop an incomplete last batch.
            Defaults to False.

    Raises:
        ValueError: If ``resolutions`` is empty or has one that is not positive.
    """

    def __init__(self, sampler: Any, batch_size: int, resolutions: Sequence[int],
                 drop_last: bool = False) -> None:
        super().__init__(sampler, batch_size, drop_last)
        if not resolutions or min(resolutions) < 1:
            raise ValueError('resolutions must be sides in pixels, at least one, got '
                             f'{resolutions}')
        self.resolutions = list(resolutions)
        seed = getattr(sampler, 'seed', None)
        self.seed = sync_random_seed() if seed is None else seed

    def draw(self, epoch: int, number: int) -> int:
        """The resolution of a batch.

        Args:
            epoch (int): The epoch, from 0.
            number (int): The batch in the epoch, from 0.

        Returns:
            int: Image side in pixels.
        """
        generator = np.random.default_rng(
            (_RESOLUTION_STREAM, self.seed, epoch, number))
        return int(generator.choice(self.resolutions))

    def __iter__(self) -> Iterator[list[int]]:
        epoch = getattr(self.sampler, 'epoch', 0)
        first = getattr(self.sampler, 'skipped', 0) // self.batch_size
        for number, batch in enumerate(super().__iter__(), first):
            resolution = self.draw(epoch, number)
            yield [SampleIndex(index, getattr(index, 'entropy', None), resolution)
                   for index in batch]


@TRANSFORMS.register_module()
class BatchResolution:
    """Look up the resolution of the sample's batch, before anything is loaded.

    Data sets replace an unreadable image by a random one, which comes without a
    resolution. It gets the one of the previous sample, which belongs to the same batch
    because a worker loads a batch in order.

    Required keys: ``sample_idx``. Added keys: ``batch_resolution``, unless the batch
    does not come from :class:`ResolutionBatchSampler`.
    """

    def __init__(self) -> None:
        self.current: int | None = None

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        index = results.get('sample_idx')
        resolution = results.get(
            'batch_resolution', getattr(index, 'resolution', None))
        self.current = resolution or self.current
        if self.current is not None:
            results['batch_resolution'] = self.current
        return results

    def __repr__(self) -> str:
        return f'{type(self).__name__}()'


@TRANSFORMS.register_module()
class BatchResizedCrop(RandomResizedCrop):
    """MMPretrain's ``RandomResizedCrop`` to the resolution of the batch, with Pillow.

    Args:
        scale (int): Image side in pixels for batches without a resolution, as in
            evaluation.
        crop_ratio_range (tuple[float, float]): Crop area relative to the image.
            Defaults to (0.08, 1.0).
        aspect_ratio_range (tuple[float, float]): Aspect ratio of the crop.
            Defaults to (3 / 4, 4 / 3).
        interpolations (Sequence[str]): Choices of which each image gets a random one:
            'nearest', 'bilinear', 'bicubic', 'box', 'hamming' or 'lanczos'.
            Defaults to ('bilinear', 'bicubic').

    Raises:
        ValueError: If ``interpolations`` is empty or has one Pillow does not know.
    """
    scale: tuple[int, int]

    def __init__(self, scale: int,
                 crop_ratio_range: tuple[float, float] = (0.08, 1.0),
                 aspect_ratio_range: tuple[float, float] = (3 / 4, 4 / 3),
                 interpolations: Sequence[str] = ('bilinear', 'bicubic')) -> None:
        super().__init__(
            scale, crop_ratio_range=crop_ratio_range,
            aspect_ratio_range=aspect_ratio_range, backend='pillow')
        unknown = set(interpolations) - set(INTERPOLATIONS)
        if unknown or not interpolations:
            raise ValueError(f'interpolations must be some of {INTERPOLATIONS}, got '
                             f'{interpolations}')
        self.default_scale = self.scale
        self.interpolations = list(interpolations)

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Crop and resize ``img``."""
        side = results.get('batch_resolution')
        self.scale = self.default_scale if side is None else (side, side)
        self.interpolation = np.random.choice(self.interpolations)
        return super().transform(results)
