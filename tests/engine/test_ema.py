import math

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

import mm_efficient  # noqa: F401


class Model(nn.Module):

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.BatchNorm1d(2)
        self.register_buffer('anchors', torch.zeros(3))
        self.register_buffer('fitted', torch.tensor(False))


def make_ema(model, **settings):
    return MODELS.build(dict(type='WarmupEMA', model=model, **settings))


def test_decay_warms_up():
    ema = make_ema(Model(), momentum=2e-4, warmup=2000)
    for update, decay in ((2000, 0.9998 * (1 - math.exp(-1))), (100000, 0.9998)):
        assert ema.decay(update) == pytest.approx(decay)


def test_decay_is_that_of_mmdetection():
    reference = pytest.importorskip('mmdet.models.layers.ema').ExpMomentumEMA
    model = nn.Linear(2, 2)
    ours = make_ema(model, momentum=0.1, warmup=5)
    theirs = reference(model, momentum=0.1, gamma=5)
    for step in range(4):
        nn.init.constant_(model.weight, step)
        for ema in (ours, theirs):
            ema.update_parameters(model)
    torch.testing.assert_close(ours.state_dict(), theirs.state_dict())


def test_parameters_and_norm_statistics_are_averaged_others_copied():
    model = Model()
    averaged = make_ema(model, momentum=0.1, warmup=5)
    expected = {}
    for update in range(1, 5):
        decay = 0.9 * (1 - math.exp(-update / 5))
        for key, tensor in model.state_dict().items():
            tensor.copy_(torch.full_like(tensor, update))
            value = torch.full_like(tensor, update)
            if update > 1 and not key.endswith(('tracked', 'anchors', 'fitted')):
                value = decay * expected[key] + (1 - decay) * value
            expected[key] = value
        averaged.update_parameters(model)
    state = averaged.module.state_dict()
    assert 1 < state['norm.running_var'][0] < 4
    assert state['norm.num_batches_tracked'] == 4
    assert state['anchors'].tolist() == [4, 4, 4] and state['fitted']
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value)


def test_shared_parameters_are_averaged_once():
    model = nn.Module()
    model.first = nn.Linear(2, 2)
    model.second = model.first
    ema = make_ema(model, momentum=0.5, warmup=1e-3)
    for value in (0., 1.):
        nn.init.constant_(model.first.weight, value)
        ema.update_parameters(model)
    assert 0 < ema.module.first.weight.unique().item() < 1


def test_it_can_be_resumed():
    model = Model()
    whole = make_ema(model, momentum=0.1, warmup=5)
    whole.update_parameters(model)
    nn.init.ones_(model.linear.weight)
    whole.update_parameters(model)
    rest = make_ema(Model(), momentum=0.1, warmup=5)
    rest.load_state_dict(whole.state_dict())
    nn.init.constant_(model.linear.weight, 3)
    for averaged in (whole, rest):
        averaged.update_parameters(model)
    torch.testing.assert_close(rest.state_dict(), whole.state_dict())


def test_warmup_must_be_positive():
    with pytest.raises(ValueError, match='warmup must be positive, got 0'):
        make_ema(Model(), warmup=0)
