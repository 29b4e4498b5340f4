import pytest
import torch
from mmengine.registry import PARAM_SCHEDULERS
from timm.scheduler import CosineLRScheduler

import mm_efficient  # noqa: F401


def rates(steps, epoch_length=None, lr=0.4, **settings):
    """Learning rate of every step."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = PARAM_SCHEDULERS.build(
        dict(type='WarmUpCosineLR', **settings),
        default_args=dict(optimizer=optimizer, epoch_length=epoch_length))
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    return values


@pytest.mark.parametrize('epochs, warm_up, lr_min', [(30, 5, 1e-3), (12, 0, 0.)])
def test_timm_schedules_alike(epochs, warm_up, lr_min):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    theirs = CosineLRScheduler(
        optimizer, t_initial=epochs, lr_min=lr_min, warmup_t=warm_up,
        warmup_lr_init=0.01, cycle_limit=1)
    expected = []
    for epoch in range(epochs):
        theirs.step(epoch)
        expected.append(optimizer.param_groups[0]['lr'])
    assert rates(epochs, warm_up=warm_up, warm_up_lr=0.01, T_max=epochs,
                 eta_min=lr_min) == pytest.approx(expected)


def test_whole_cosine_behind_the_warm_up_by_iteration():
    values = rates(120, epoch_length=10, warm_up=2, cosine_begin=2, T_max=10,
                   by_epoch=True, convert_to_iter_based=True)
    assert values[0] == 0
    assert values[5] == pytest.approx(0.1)
    assert values[20] == max(values) == pytest.approx(0.4)
    assert values[70] == pytest.approx(0.2)
    assert 0 < values[-1] < 1e-4


def test_conversion_needs_iterations():
    with pytest.raises(ValueError, match='at least one iteration, got 0'):
        rates(1, epoch_length=0, warm_up=2, T_max=10, convert_to_iter_based=True)
