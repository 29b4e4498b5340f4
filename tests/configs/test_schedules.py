"""Batch, learning rate and weight decay of every config against what was published."""
import copy

import pytest
import torch
from config_grid import EVERY_LEAF, EXPECTED, load, meta_model
from mmengine.optim import build_optim_wrapper
from mmengine.registry import PARAM_SCHEDULERS, DefaultScope
from torch.nn.modules.batchnorm import _BatchNorm

GPUS = 8

# Published classification settings: images per GPU (of 8), lr per 1024 images,
# weight decay.
CLASSIFICATION_RECIPE = dict(
    soft_tiny=(128, 1e-3, 0.05),
    soft_tiny_norm=(128, 1e-3, 0.05),
    soft_small=(128, 1e-3, 0.05),
    soft_small_norm=(128, 1e-3, 0.05),
    soft_medium=(32, 3.5e-4, 0.05),
    soft_medium_norm=(32, 4e-4, 0.05),
    soft_large=(32, 3.3e-4, 0.05),
    soft_large_norm=(32, 3.3e-4, 0.05),
    soft_huge=(32, 2.7e-4, 0.05),
    soft_huge_norm=(32, 2.7e-4, 0.05),
    swiftformer_xs=(256, 1e-3, 0.025),
    swiftformer_s=(256, 1e-3, 0.025),
    swiftformer_l1=(256, 1e-3, 0.025),
    swiftformer_l3=(256, 1e-3, 0.025),
    **{f'ecoformer_pvt_b{i}': (32, 1e-4, 0.05) for i in range(5)},
    ecoformer_twins_s=(32, 5e-4, 0.05),
    # Published: lr per GPU, for this many images on each; any number of GPUs
    lowformer_b0=(128, 3.32e-4 / 170 * 1024, 0.1),
    lowformer_b1=(128, 2.5e-4 / 128 * 1024, 0.1),
    lowformer_b15=(128, 1.66e-4 / 170 * 1024, 0.1),
    lowformer_b2=(128, 1.25e-4 / 170 * 1024, 0.1),
    lowformer_b3=(128, 0.94e-4 / 75 * 1024, 0.1),
    lowformer_e1=(128, 1e-4 / 100 * 1024, 0.1),
    lowformer_e2=(128, 1e-4 / 50 * 1024, 0.1),
    lowformer_e3=(128, 0.625e-4 / 50 * 1024, 0.1),
    reduceformer_b1=(128, 2e-3, 0.1),
    reduceformer_b2=(128, 3.2e-3, 0.1),
    reduceformer_b3=(128, 3.2e-3, 0.1))

# Published settings of the dense tasks: lr, weight decay, images of a batch. A
# family's own come first.
DENSE_RECIPE = dict(
    retinanet_1x=(1e-4, 1e-4, 16),
    maskrcnn_1x=(2e-4, 1e-4, 16),
    upernet_160k=(6e-5, 0.01, 16),
    fpn_80k=(1e-4, 1e-4, 32),
    fpn_40k=(2e-4, 1e-4, 32))
OWN_DENSE_RECIPE = {('SwiftFormer', 'maskrcnn_1x'): (2e-4, 1e-4, 32)}


@EVERY_LEAF
def test_batch_and_learning_rate(name):
    leaf, config = EXPECTED[name], load(name)
    optimizer = config.optim_wrapper.optimizer
    batch = GPUS * config.train_dataloader.batch_size
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=batch)
    assert optimizer.type == 'AdamW'
    if leaf.task == 'cls':
        per_gpu, base_lr, weight_decay = CLASSIFICATION_RECIPE[leaf.variant]
        lr, images = base_lr * batch / 1024, GPUS * per_gpu
    else:
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


def test_classifier_decays_what_soft_decayed():
    model, wrapper, decay = decayed_parameters('cls/soft_tiny_300e')
    assert wrapper.clip_grad_kwargs == dict(max_norm=1.0)
    for key, parameter in model.named_parameters():
        exempt = parameter.ndim == 1 or key.endswith('cls_token')
        assert decay[key] == (0 if exempt else 0.05), key
    assert decay['backbone.stages.0.pos_embed'] == 0.05
    assert decay['backbone.stages.3.cls_token'] == 0


def test_swiftformer_decays_all_but_vectors_and_biases():
    model, _, decay = decayed_parameters('cls/swiftformer_xs_300e')
    for key, parameter in model.named_parameters():
        assert decay[key] == (0 if parameter.ndim == 1 else 0.025), key
    block = 'backbone.stages.0.blocks.2'
    assert decay[f'{block}.attn_scale'] == decay[f'{block}.attn.score_weight'] == 0.025


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


def test_mixing_of_images_is_the_published_one():
    mixed = {name for name, leaf in EXPECTED.items()
             if leaf.family == 'SwiftFormer' and load(name).model.get('train_cfg')
             and 'augments' in load(name).model.train_cfg}
    assert mixed == {'cls/swiftformer_l1_300e', 'cls/swiftformer_l3_300e'}


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


def test_learning_rate_of_classification():
    rates = learning_rates('cls/soft_tiny_300e', epoch_length=10, epochs=300)
    assert rates[0] == pytest.approx(1e-6)
    assert rates[50] == pytest.approx(5e-4, rel=0.02)
    assert rates[100] == max(rates) == pytest.approx(1e-3)
    assert rates[1550] == pytest.approx((1e-3 + 5e-5) / 2)
    assert rates[-1] == pytest.approx(5e-5, rel=0.01)


def test_learning_rate_of_swiftformer():
    rates = learning_rates('cls/swiftformer_xs_300e', epoch_length=10, epochs=300)
    assert rates[0] == pytest.approx(1e-6)
    assert rates[50] == max(rates) == pytest.approx(2e-3)
    assert rates[1520] > (2e-3 + 1e-5) / 2 > rates[1530]  # stepped by the epoch
    assert rates[-1] == pytest.approx(1e-5, rel=0.01)


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
