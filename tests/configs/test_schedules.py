"""What the schedules of det and seg do. Their values are in test_recipes.py."""
import copy

import pytest
import torch
from config_grid import load, meta_model
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch.nn.modules.batchnorm import _BatchNorm


def decayed_parameters(name):
    """Weight decay of every parameter, by its name."""
    config, model = load(name), meta_model(name)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        wrapper = build_optim_wrapper(
            model, copy.deepcopy(config.optim_wrapper))
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    decay = {
        names[id(parameter)]: group['weight_decay']
        for group in wrapper.optimizer.param_groups for parameter in group['params']
    }
    assert set(decay) == set(names.values())
    return model, decay


def test_upernet_does_not_decay_norms_and_positions():
    name = 'seg/soft_tiny_upernet_160k'
    model, decay = decayed_parameters(name)
    weight_decay = load(name).optim_wrapper.optimizer.weight_decay
    norms = {
        f'{prefix}.{key}'
        for prefix, module in model.named_modules()
        if isinstance(module, (torch.nn.LayerNorm, _BatchNorm))
        for key, _ in module.named_parameters(recurse=False)
    }
    assert len(norms) > 20
    for key, value in decay.items():
        assert value == (
            0 if key in norms or 'pos_embed' in key else weight_decay), key


@pytest.mark.parametrize('name', [
    'det/soft_tiny_retinanet_1x', 'det/soft_tiny_maskrcnn_1x', 'seg/soft_tiny_fpn_80k'
])
def test_other_schedules_decay_everything(name):
    weight_decay = load(name).optim_wrapper.optimizer.weight_decay
    assert set(decayed_parameters(name)[1].values()) == {weight_decay}


def base_lr(name):
    return load(name).optim_wrapper.optimizer.lr


def learning_rates(name, epoch_length, epochs):
    """Learning rate of every iteration, schedulers stepped as MMEngine does."""
    config = copy.deepcopy(load(name))
    lr = base_lr(name)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedulers = [
        PARAM_SCHEDULERS.build(
            item, default_args=dict(optimizer=optimizer, epoch_length=epoch_length))
        for item in config.param_scheduler
    ]
    rates = []
    for _ in range(epochs):
        for _ in range(epoch_length):
            rates.append(optimizer.param_groups[0]['lr'])
            optimizer.step()
            for scheduler in schedulers:
                if not scheduler.by_epoch:
                    scheduler.step()
        for scheduler in schedulers:
            if scheduler.by_epoch:
                scheduler.step()
    return rates


@pytest.mark.parametrize('method', ['retinanet', 'maskrcnn'])
def test_learning_rate_of_detection(method):
    name = f'det/soft_tiny_{method}_1x'
    lr, rates = base_lr(name), learning_rates(name, epoch_length=600, epochs=12)
    assert rates[0] == pytest.approx(1e-3 * lr)
    assert rates[500] == rates[600 * 8 - 1] == pytest.approx(lr)
    assert rates[600 * 8] == rates[600 * 11 - 1] == pytest.approx(0.1 * lr)
    assert rates[600 * 11] == rates[-1] == pytest.approx(0.01 * lr)


def test_learning_rate_of_upernet():
    name = 'seg/soft_tiny_upernet_160k'
    lr, rates = base_lr(name), learning_rates(name, epoch_length=160000, epochs=1)
    assert rates[0] == pytest.approx(1e-6 * lr)
    assert max(rates) == pytest.approx(lr, rel=1e-3)
    assert rates.index(max(rates)) in (1499, 1500)
    assert rates[80750] == pytest.approx(0.5 * lr, rel=1e-3)
    assert rates[-1] < 1e-4 * lr


def test_learning_rate_of_semantic_fpn():
    name = 'seg/soft_tiny_fpn_80k'
    lr, rates = base_lr(name), learning_rates(name, epoch_length=80000, epochs=1)
    for iteration in (0, 20000, 79000):
        assert rates[iteration] == pytest.approx(
            lr * (1 - iteration / 80000)**0.9, rel=1e-3)
