"""Batch, learning rate and weight decay of det and seg against what was published.

The recipes of classification are in test_recipes_*.py.
"""
import copy

import pytest
import torch
from config_grid import EXPECTED, ON_DISK, load, meta_model
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch.nn.modules.batchnorm import _BatchNorm

GPUS = 8

# Published settings of the dense tasks: lr, weight decay, images of a batch. A
# family's own come first.
DENSE_RECIPE = dict(
    retinanet_1x=(1e-4, 1e-4, 16),
    maskrcnn_1x=(2e-4, 1e-4, 16),
    upernet_160k=(6e-5, 0.01, 16),
    fpn_80k=(1e-4, 1e-4, 32),
    fpn_40k=(2e-4, 1e-4, 32))
OWN_DENSE_RECIPE = {('SwiftFormer', 'maskrcnn_1x'): (2e-4, 1e-4, 32)}


@pytest.mark.parametrize('name', [n for n in ON_DISK if not n.startswith('cls')])
def test_batch_and_learning_rate(name):
    leaf, config = EXPECTED[name], load(name)
    optimizer = config.optim_wrapper.optimizer
    batch = GPUS * config.train_dataloader.batch_size
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=batch)
    assert optimizer.type == 'AdamW'
    lr, weight_decay, images = OWN_DENSE_RECIPE.get(
        (leaf.family, leaf.method), DENSE_RECIPE[leaf.method])
    assert (optimizer.lr, optimizer.weight_decay, batch) == (
        pytest.approx(lr), weight_decay, images)


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
    return model, wrapper, decay


def test_upernet_does_not_decay_norms_and_positions():
    model, _, decay = decayed_parameters('seg/soft_tiny_upernet_160k')
    norms = {
        f'{prefix}.{key}'
        for prefix, module in model.named_modules()
        if isinstance(module, (torch.nn.LayerNorm, _BatchNorm))
        for key, _ in module.named_parameters(recurse=False)
    }
    assert len(norms) > 20
    for key, value in decay.items():
        assert value == (0 if key in norms or 'pos_embed' in key else 0.01), key


@pytest.mark.parametrize('name', [
    'det/soft_tiny_retinanet_1x', 'det/soft_tiny_maskrcnn_1x', 'seg/soft_tiny_fpn_80k'
])
def test_other_schedules_decay_everything(name):
    assert set(decayed_parameters(name)[2].values()) == {1e-4}


def learning_rates(name, epoch_length, epochs):
    """Learning rate of every iteration, schedulers stepped as MMEngine does."""
    config = copy.deepcopy(load(name))
    lr = config.optim_wrapper.optimizer.lr
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


@pytest.mark.parametrize('method, lr', [('retinanet', 1e-4), ('maskrcnn', 2e-4)])
def test_learning_rate_of_detection(method, lr):
    rates = learning_rates(f'det/soft_tiny_{method}_1x', epoch_length=600, epochs=12)
    assert rates[0] == pytest.approx(1e-3 * lr)
    assert rates[500] == rates[600 * 8 - 1] == pytest.approx(lr)
    assert rates[600 * 8] == rates[600 * 11 - 1] == pytest.approx(0.1 * lr)
    assert rates[600 * 11] == rates[-1] == pytest.approx(0.01 * lr)


def test_learning_rate_of_upernet():
    rates = learning_rates('seg/soft_tiny_upernet_160k', epoch_length=160000, epochs=1)
    assert rates[0] == pytest.approx(6e-11)
    assert max(rates) == pytest.approx(6e-5, rel=1e-3)
    assert rates.index(max(rates)) in (1499, 1500)
    assert rates[80750] == pytest.approx(3e-5, rel=1e-3)
    assert rates[-1] < 1e-9


def test_learning_rate_of_semantic_fpn():
    rates = learning_rates('seg/soft_tiny_fpn_80k', epoch_length=80000, epochs=1)
    for iteration in (0, 20000, 79000):
        assert rates[iteration] == pytest.approx(
            1e-4 * (1 - iteration / 80000)**0.9, rel=1e-3)
