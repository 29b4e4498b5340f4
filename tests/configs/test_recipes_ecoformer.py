"""What a runner does with EcoFormer's recipes, against the published settings."""
import pytest
import torch
from config_grid import load
from recipe_runner import (
    check_rand_augment,
    evaluated,
    mixing,
    samples,
    soft_cross_entropy,
    timm_lr,
    transforms,
)

# lr per 512 images, first lr, epochs
PUBLISHED = {
    'cls/ecoformer_pvt_b0_30e': (5e-5, 1e-7, 30),
    'cls/ecoformer_pvt_b0_softmax_100e': (5e-5, 1e-7, 100),
    'cls/ecoformer_twins_s_30e': (2.5e-4, 5e-7, 30),
    'cls/ecoformer_twins_s_softmax_100e': (5e-5, 1e-7, 100),
}
EVERY_RECIPE = pytest.mark.parametrize('name', PUBLISHED)


@pytest.mark.parametrize('arch', ['b1', 'b2', 'b3', 'b4'])
@pytest.mark.parametrize('method', ['30e', 'softmax_100e'])
def test_all_sizes_of_pvt_are_trained_alike(arch, method):
    config, first = (load(f'cls/ecoformer_pvt_{a}_{method}') for a in (arch, 'b0'))
    for key in ('optim_wrapper', 'param_scheduler', 'train_dataloader', 'train_cfg',
                'val_dataloader', 'custom_hooks', 'auto_scale_lr'):
        assert config[key] == first[key]


@EVERY_RECIPE
def test_schedule(name, recipe):
    run = recipe(name)
    base_lr, first_lr, epochs = PUBLISHED[name]
    assert run.cfg.train_dataloader.batch_size == 32
    assert run.cfg.auto_scale_lr.base_batch_size == 256
    assert run.epoch_length == 1281167 // 256
    assert run.loop.max_epochs == epochs
    for epoch in (0, 1, 4, 5, 15, 29, epochs - 1):
        expected = timm_lr(epoch, base_lr / 2, epochs, 5, first_lr, 1e-6)
        assert run.lr(epoch) == pytest.approx(expected)
    assert run.lr(0) == pytest.approx(first_lr)


@EVERY_RECIPE
def test_optimizer(name, recipe):
    run = recipe(name)
    wrapper = run.runner.optim_wrapper
    assert type(wrapper.optimizer) is torch.optim.AdamW
    assert wrapper.defaults['betas'] == (0.9, 0.999) and wrapper.defaults['eps'] == 1e-8
    twins = 'twins' in name
    assert wrapper.clip_grad_kwargs == (dict(max_norm=5.) if twins else None)
    decay, positions = run.decay(), 0
    for key, parameter in run.runner.model.named_parameters():
        exempt = parameter.ndim == 1 or 'pos_conv' in key
        positions += 'pos_conv' in key and parameter.ndim > 1
        assert decay.pop(key) == (0 if exempt else 0.05), key
    assert not decay and positions == (4 if twins else 0)


@EVERY_RECIPE
def test_model_in_training(name, recipe):
    run = recipe(name)
    rates = [m.drop_prob for m in run.runner.model.modules() if hasattr(m, 'drop_prob')]
    assert not any(rates)
    kinds = [type(hook).__name__ for hook in run.runner.hooks]
    assert ('HashFittingHook' in kinds) == ('softmax' not in name)
    assert 'EMAHook' not in kinds
    assert run.runner.model.backbone.num_hash_attentions == (
        0 if 'softmax' in name else 14 if 'twins' in name else 6)


@EVERY_RECIPE
def test_augmentation(name, recipe):
    steps = transforms(name)
    assert list(steps) == ['LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip',
                           'RandAugment', 'RandomErasing', 'PackInputs']
    crop = steps['RandomResizedCrop']
    assert (crop.scale, crop.interpolation) == ((224, 224), 'bicubic')
    check_rand_augment(steps['RandAugment'], 2, 9, 0.5)
    assert (steps['RandomErasing'].erase_prob, steps['RandomErasing'].mode) == (
        0.25, 'rand')
    run = recipe(name)
    assert mixing(run.runner.model) == dict(Mixup=0.8, CutMix=1.0)
    indices = list(run.runner.train_dataloader.sampler)[:300]
    repeats = 1 if 'twins' in name else 3
    assert {indices.count(i) for i in set(indices)} == {repeats}


@EVERY_RECIPE
def test_loss(name, recipe):
    head = recipe(name).runner.model.head
    torch.manual_seed(0)
    feats = (torch.randn(2, head.in_channels), )
    data_samples, scores = samples()
    torch.testing.assert_close(head.loss(feats, data_samples)['loss'],
                               soft_cross_entropy(head(feats), scores))


@EVERY_RECIPE
def test_evaluation(name):
    assert evaluated(name) == (256, 224)
