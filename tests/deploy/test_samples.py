"""Images and weights that exports are compared on."""
import copy

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

from mm_efficient.deploy.samples import randomize, sample_images


def test_synthetic_images_of_two_shapes():
    first, second = sample_images([], (96, 128))
    assert first.shape == (2, 3, 96, 128) and second.shape == (1, 3, 75, 161)
    assert not torch.equal(first[0], first[1])
    assert 0 <= first.min() and 128 < first.max() <= 255


def test_images_of_a_file(tmp_path):
    import mmcv
    blue = np.zeros((40, 60, 3), np.uint8)
    blue[..., 0] = 200  # OpenCV writes BGR
    mmcv.imwrite(blue, str(tmp_path / 'blue.png'))
    for batch in sample_images([tmp_path / 'blue.png'], (64, 96)):
        assert batch.mean((0, 2, 3)).tolist() == [0, 0, 200]


@pytest.mark.parametrize('seed', range(4))
def test_random_weights_neither_vanish_nor_overflow(seed):
    """ReduceFormer's attention grows with the square of its input."""
    torch.manual_seed(seed)
    model = MODELS.build(dict(type='mmpretrain.ReduceFormer', arch='b3',
                              out_indices=(0, 1, 2, 3), pretrain_size=224)).eval()
    batches = [(images - 128) / 64 for images in sample_images([], (64, 96))]
    randomize(model, lambda model, x: model(x), batches)
    exact = copy.deepcopy(model).double()
    for x in batches:
        with torch.no_grad():
            levels, expected = model(x), exact(x.double())
        for level, truth in zip(levels, expected):
            assert 0.5 < truth.std() < 5
            assert (level - truth).norm() / truth.norm() < 1e-4


def test_random_weights_ignore_the_default_device():
    models = [nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    image = torch.rand(2, 3, 5, 5)
    for model, device in zip(models, ('cpu', 'meta')):
        with torch.device(device):
            randomize(model.eval(), lambda model, x: model(x), [image])
    assert all(map(torch.equal, *(m.state_dict().values() for m in models)))


def test_random_weights_all_matter():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(5, 5, False))
    model.scale = nn.Parameter(torch.tensor(0.))
    model[2].weight.data.zero_()
    before = copy.deepcopy(model.state_dict())
    randomize(model.eval(), lambda model, x: model(x), [torch.rand(2, 3, 5, 5)])
    kept = {name for name, value in model.state_dict().items()
            if torch.equal(value, before[name])}
    assert kept == {'0.weight', '1.num_batches_tracked', '2.weight'}
