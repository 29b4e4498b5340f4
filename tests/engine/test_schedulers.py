import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from timm.scheduler import CosineLRScheduler

import mm_efficient  # noqa: F401


def build(epoch_length=None, lr=0.4, **settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = PARAM_SCHEDULERS.build(
        dict(type='WarmupCosineLR', **settings),
        default_args=dict(optimizer=optimizer, epoch_length=epoch_length))
    return optimizer, scheduler


def rates(steps, **settings):
    """Learning rate of every step."""
    optimizer, scheduler = build(**settings)
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize('epochs, warmup, lr_min', [(30, 5, 1e-3), (12, 0, 0.)])
def test_timm_schedules_alike(epochs, warmup, lr_min):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=lr_min, warmup_t=warmup,
        warmup_lr_init=0.01, cycle_limit=1)
    expected = []
    for epoch in range(epochs):
        theirs.step(epoch)
        expected.append(optimizer.param_groups[0]['lr'])
    assert rates(epochs, warmup=warmup, warmup_lr_init=0.01, T_max=epochs,
                 eta_min=lr_min) == pytest.approx(expected)


def test_whole_cosine_after_the_warmup_by_iteration():
    values = rates(120, epoch_length=10, warmup=2, cosine_begin=2, T_max=10,
                   by_epoch=True, convert_to_iter_based=True)
    assert values[0] == 0
    assert values[5] == pytest.approx(0.1)
    assert values[20] == max(values) == pytest.approx(0.4)
    assert values[70] == pytest.approx(0.2)
    assert 0 < values[-1] < 1e-4


def test_conversion_needs_iterations():
    with pytest.raises(ValueError, match='at least one iteration, got 0'):
        rates(1, epoch_length=0, warmup=2, T_max=10, convert_to_iter_based=True)


@pytest.mark.parametrize('done', [1, 3])  # in the warmup, in the cosine
def test_resumes_from_a_checkpoint_with_earlier_attribute_names(done):
    settings = dict(warmup=2, warmup_lr_init=0.1, T_max=5)
    expected = rates(5, **settings)
    optimizer, scheduler = build(**settings)
    for _ in range(done):
        optimizer.step()
        scheduler.step()
    state = scheduler.state_dict()
    state['warm_up'], state['warm_up_lr'] = state.pop('warmup'), state.pop(
        'warmup_lr_init')
    resumed_optimizer, resumed = build(**settings)
    resumed_optimizer.load_state_dict(optimizer.state_dict())
    resumed.load_state_dict(state)
    values = []
    for _ in range(done, 4):
        resumed_optimizer.step()
        resumed.step()
        values.append(resumed_optimizer.param_groups[0]['lr'])
    assert values == expected[done + 1:]
