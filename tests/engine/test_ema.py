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


def average(model, **settings):
    return MODELS.build(dict(type='WarmUpEMA', model=model, **settings))


def test_decay_warms_up():
    average_ = average(Model(), momentum=2e-4, warm_up=2000)
    for steps, decay in ((0, 0.), (2000, 0.9998 * (1 - math.exp(-1))),
                         (100000, 0.9998)):
        assert average_.decay(steps) == pytest.approx(decay)


def test_parameters_and_norm_statistics_are_averaged_others_copied():
    model = Model()
    averaged = average(model, momentum=0.1, warm_up=5)
    expected = {}
    for step in range(4):
        decay = 0.9 * (1 - math.exp(-step / 5))
        for key, tensor in model.state_dict().items():
            tensor.copy_(torch.full_like(tensor, 1 + step))
            value = torch.full_like(tensor, 1 + step)
            if step and not key.endswith(('tracked', 'anchors', 'fitted')):
                value = decay * expected[key] + (1 - decay) * value
            expected[key] = value
        averaged.update_parameters(model)
    state = averaged.module.state_dict()
    assert 1 < state['norm.running_var'][0] < 4
    assert state['norm.num_batches_tracked'] == 4
    assert state['anchors'].tolist() == [4, 4, 4] and state['fitted']
    for key, value in expected.items():
        torch.testing.assert_close(state[key], value)


def test_it_can_be_resumed():
    model = Model()
    whole = average(model, momentum=0.1, warm_up=5)
    whole.update_parameters(model)
    nn.init.ones_(model.linear.weight)
    whole.update_parameters(model)
    rest = average(Model(), momentum=0.1, warm_up=5)
    rest.load_state_dict(whole.state_dict())
    nn.init.constant_(model.linear.weight, 3)
    for averaged in (whole, rest):
        averaged.update_parameters(model)
    torch.testing.assert_close(rest.state_dict(), whole.state_dict())


def test_warm_up_must_be_positive():
    with pytest.raises(ValueError, match='warm_up must be positive, got 0'):
        average(Model(), warm_up=0)
