from collections import Counter

import numpy as np
import pytest
from mmengine.registry import DATA_SAMPLERS, TRANSFORMS
from mmengine.runner import Runner

from mm_efficient.engine.resolution import (
    BatchResizedCrop,
    BatchResolution,
    ResolutionBatchSampler,
)
from mm_efficient.engine.seeding import SampleIndex, SeedSample

SIZES = [32, 48, 64]


def batches(length=64, epoch=0, seed=0, sampler='DefaultSampler', **settings):
    sampler = DATA_SAMPLERS.build(dict(
        type='SeededSampler', dataset=range(length), seed=seed,
        sampler=dict(type=sampler)))
    if hasattr(sampler.sampler, 'set_epoch'):
        sampler.set_epoch(epoch)
    return ResolutionBatchSampler(sampler, 4, SIZES, **settings)


def sizes(**settings):
    resolutions = [{index.resolution for index in batch}
                   for batch in batches(**settings)]
    assert all(len(found) == 1 for found in resolutions)
    return [found.pop() for found in resolutions]


def test_every_resolution_is_equally_likely():
    counts = Counter(sizes(length=12000))
    assert set(counts) == set(SIZES)
    assert max(abs(count - 1000) for count in counts.values()) < 100


def test_resolutions_are_derived_from_seed_and_position():
    assert sizes() == sizes() == [batches().draw(0, number) for number in range(16)]
    assert sizes(epoch=3) == [batches().draw(3, number) for number in range(16)]
    assert len({tuple(sizes(epoch=epoch, seed=seed))
                for epoch in (0, 1) for seed in (0, 1)}) == 4


def test_seeds_of_the_samples_are_kept():
    indices = [index for batch in batches() for index in batch]
    assert [index.entropy for index in indices] == [(0, 0, 0, i) for i in range(64)]


def test_incomplete_batches():
    assert [len(batch) for batch in batches(length=6)] == [4, 2]
    assert [len(batch) for batch in batches(length=6, drop_last=True)] == [4]


def test_after_skipped_samples_the_resolutions_go_on():
    whole = iter(batches(sampler='InfiniteSampler'))
    expected = [next(whole)[0].resolution for _ in range(8)][5:]
    rest = batches(sampler='InfiniteSampler')
    rest.sampler.skipped = 20  # as the engines that can skip set it
    rest = iter(rest)
    assert [next(rest)[0].resolution for _ in range(3)] == expected


def test_resolutions_are_checked():
    with pytest.raises(ValueError, match=r'at least one, got \[\]'):
        ResolutionBatchSampler(range(4), 2, [])


def crop(index, *first):
    pipeline = [*first, BatchResolution(), BatchResizedCrop(40)]
    results = dict(sample_idx=index, img=np.zeros((50, 60, 3), np.uint8))
    for transform in pipeline:
        results = transform(results)
    return results['img'].shape


def test_crop_has_the_resolution_of_the_batch():
    assert crop(3) == (40, 40, 3)
    assert crop(SampleIndex(3, None, 48)) == (48, 48, 3)
    assert crop(SampleIndex(3, (0, 0, 0, 0), 48), SeedSample()) == (48, 48, 3)


def test_every_image_has_a_random_interpolation():
    kinds = set()
    for _ in range(60):
        transform = BatchResizedCrop(40, interpolations=['nearest', 'box', 'lanczos'])
        transform(dict(img=np.zeros((50, 60, 3), np.uint8)))
        kinds.add(transform.interpolation)
    assert kinds == {'nearest', 'box', 'lanczos'}
    with pytest.raises(ValueError, match="hamming', 'lanczos'.*got .'area'"):
        BatchResizedCrop(40, interpolations=['area'])


def test_a_replaced_image_gets_the_resolution_of_its_batch():
    transform = BatchResolution()
    transform(dict(sample_idx=SampleIndex(3, None, 48)))
    assert transform(dict(sample_idx=7))['batch_resolution'] == 48


def test_from_a_config():
    TRANSFORMS.build(dict(type='BatchResizedCrop', scale=40))

    class Data:
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return BatchResolution()(dict(sample_idx=index))['batch_resolution']

    loader = Runner.build_dataloader(dict(
        dataset=Data(), batch_size=4, num_workers=1,
        sampler=dict(type='DefaultSampler', shuffle=True),
        batch_sampler=dict(type='ResolutionBatchSampler', resolutions=SIZES)), seed=0)
    assert [list(batch) for batch in loader] == [
        [loader.batch_sampler.draw(0, number)] * 4 for number in range(2)]
