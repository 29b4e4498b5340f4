"""Training at several resolutions, one per iteration."""
import numpy as np
from mmengine.dist import sync_random_seed
from mmengine.registry import DATA_SAMPLERS, TRANSFORMS
from mmpretrain.datasets.transforms import RandomResizedCrop
from torch.utils.data import BatchSampler

from .seeding import SampleIndex

# Keeps the random numbers of resolutions apart from those of the samples.
_RESOLUTION_STREAM = 0x73697A65
INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')


@DATA_SAMPLERS.register_module()
class ResolutionBatchSampler(BatchSampler):
    """Draw a resolution for every batch.

    It follows from the seed, the epoch and the number of the batch, so it is the same
    in all processes, and in a resumed training. The samples of a batch are told by
    their index (:class:`~mm_efficient.datasets.SampleIndex`);
    :class:`BatchResolution`, the first transform of the pipeline, reads it::

        train_dataloader = dict(
            sampler=dict(type='DefaultSampler', shuffle=True),
            batch_sampler=dict(
                type='ResolutionBatchSampler', resolutions=[128, 160, 192, 224]),
            dataset=dict(pipeline=[
                dict(type='BatchResolution'), dict(type='LoadImageFromFile'),
                dict(type='BatchResizedCrop', scale=224), ...]))

    Args:
        sampler (Sampler): Chooses the indices; MMEngine passes it.
        batch_size (int): Samples per batch; MMEngine passes it.
        resolutions (Sequence[int]): Sides in pixels to draw from, all equally likely.
        drop_last (bool): Leave an incomplete batch at the end out.
            Defaults to False.

    Raises:
        ValueError: If there is no resolution, or one is not positive.
    """

    def __init__(self, sampler, batch_size, resolutions, drop_last=False):
        super().__init__(sampler, batch_size, drop_last)
        if not resolutions or min(resolutions) < 1:
            raise ValueError('resolutions must be sides in pixels, at least one, got '
                             f'{resolutions}')
        self.resolutions = list(resolutions)
        seed = getattr(sampler, 'seed', None)
        self.seed = sync_random_seed() if seed is None else seed

    def draw(self, epoch, number):
        """Resolution of a batch.

        Args:
            epoch (int): The epoch, from 0.
            number (int): The batch in the epoch, from 0.

        Returns:
            int: Side in pixels.
        """
        generator = np.random.default_rng(
            (_RESOLUTION_STREAM, self.seed, epoch, number))
        return int(generator.choice(self.resolutions))

    def __iter__(self):
        epoch = getattr(self.sampler, 'epoch', 0)
        first = getattr(self.sampler, 'skipped', 0) // self.batch_size
        for number, batch in enumerate(super().__iter__(), first):
            resolution = self.draw(epoch, number)
            yield [SampleIndex(index, getattr(index, 'entropy', None), resolution)
                   for index in batch]


@TRANSFORMS.register_module()
class BatchResolution:
    """Find out the resolution of the sample's batch, before anything is loaded.

    A data set replaces a picture that cannot be read by one at random, which comes
    without a resolution: it gets that of the sample before, which is of the same
    batch, since one process loads a batch in order.

    Required keys: ``sample_idx``. Added keys: ``batch_resolution``, unless the batch
    was not made by :class:`ResolutionBatchSampler`.
    """

    def __init__(self) -> None:
        self.current = None

    def __call__(self, results):
        index = results.get('sample_idx')
        resolution = results.get(
            'batch_resolution', getattr(index, 'resolution', None))
        self.current = resolution or self.current
        if self.current is not None:
            results['batch_resolution'] = self.current
        return results

    def __repr__(self):
        return f'{type(self).__name__}()'


@TRANSFORMS.register_module()
class BatchResizedCrop(RandomResizedCrop):
    """MMPretrain's ``RandomResizedCrop`` to the resolution of the batch, by Pillow.

    Args:
        scale (int): Side in pixels where no resolution was drawn, as when batch norms
            are re-estimated for the evaluation.
        crop_ratio_range (tuple[float]): Area of the crop over that of the image.
            Defaults to (0.08, 1.0).
        aspect_ratio_range (tuple[float]): Aspect ratio of the crop.
            Defaults to (3 / 4, 4 / 3).
        interpolations (Sequence[str]): Of 'nearest', 'bilinear', 'bicubic', 'box',
            'hamming' and 'lanczos', those of which one is drawn for every image.
            Defaults to ('bilinear', 'bicubic').

    Raises:
        ValueError: If Pillow does not have such an interpolation.
    """

    def __init__(self, scale, crop_ratio_range=(0.08, 1.0),
                 aspect_ratio_range=(3 / 4, 4 / 3),
                 interpolations=('bilinear', 'bicubic')):
        super().__init__(
            scale, crop_ratio_range=crop_ratio_range,
            aspect_ratio_range=aspect_ratio_range, backend='pillow')
        unknown = set(interpolations) - set(INTERPOLATIONS)
        if unknown or not interpolations:
            raise ValueError(f'interpolations must be some of {INTERPOLATIONS}, got '
                             f'{interpolations}')
        self.default_scale = self.scale
        self.interpolations = list(interpolations)

    def transform(self, results):
        """Crop and resize ``img``."""
        side = results.get('batch_resolution')
        self.scale = self.default_scale if side is None else (side, side)
        self.interpolation = np.random.choice(self.interpolations)
        return super().transform(results)
