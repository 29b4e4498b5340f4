"""What exports are compared on."""
import copy

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS

from mm_efficient.deploy import photographs, randomize


def test_photographs_of_two_sizes():
    first, second = photographs([], (96, 128))
    assert first.shape == (2, 3, 96, 128) and second.shape == (1, 3, 75, 161)
    assert not torch.equal(first[0], first[1])
    assert 0 <= first.min() and 128 < first.max() <= 255


def test_photographs_of_a_file(tmp_path):
    import mmcv
    blue = np.zeros((40, 60, 3), np.uint8)
    blue[..., 0] = 200  # as files are written: BGR
    mmcv.imwrite(blue, str(tmp_path / 'blue.png'))
    for batch in photographs([tmp_path / 'blue.png'], (64, 96)):
        assert batch.mean((0, 2, 3)).tolist() == [0, 0, 200]


@pytest.mark.parametrize('arch', ['b2', 'b3'])
def test_random_weights_neither_vanish_nor_overflow(arch):
    """Attention of ReduceFormer grows with the square of what goes in."""
    model = MODELS.build(dict(type='mmpretrain.ReduceFormer', arch=arch,
                              out_indices=(0, 1, 2, 3), pretrain_size=224)).eval()
    model.init_weights()
    batches = [(images - 128) / 64 for images in photographs([], (96, 128))]
    randomize(model, lambda model, x: model(x), batches)
    exact = copy.deepcopy(model).double()
    for x in batches:
        with torch.no_grad():
            levels, expected = model(x), exact(x.double())
        for level, truth in zip(levels, expected):
            assert 0.1 < truth.std() < 10
            assert (level - truth).norm() / truth.norm() < 5e-4
