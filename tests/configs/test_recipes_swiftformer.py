"""What a runner does with SwiftFormer's recipe, against the published settings."""
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
from torch.nn import functional as F

VARIANTS = ('xs', 's', 'l1', 'l3')
NAME = 'cls/swiftformer_l1_300e'


@pytest.mark.parametrize('arch', VARIANTS)
def test_batch_and_learning_rate(arch):
    config = load(f'cls/swiftformer_{arch}_300e')
    assert config.train_dataloader.batch_size == 2048 // 8
    assert config.optim_wrapper == load(NAME).optim_wrapper
    assert config.optim_wrapper.optimizer.lr == 2e-3
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=2048)
    assert config.param_scheduler == load(NAME).param_scheduler
    assert config.custom_hooks == load(NAME).custom_hooks


def test_schedule(recipe):
    run = recipe(NAME)
    assert run.epoch_length == 1281167 // 2048
    assert run.loop.max_epochs == 300
    for epoch in (0, 1, 4, 5, 100, 152, 299):
        expected = timm_lr(epoch, 2e-3, 300, 5, 1e-6, 1e-5)
        assert run.lr(epoch) == pytest.approx(expected)
    assert run.lr(0) == pytest.approx(1e-6)
    assert run.lr(299) == pytest.approx(1e-5, rel=0.01)


def test_optimizer(recipe):
    run = recipe(NAME)
    wrapper = run.runner.optim_wrapper
    assert type(wrapper).__name__ == 'AGCOptimWrapper'
    assert type(wrapper.optimizer) is torch.optim.AdamW
    assert wrapper.defaults['betas'] == (0.9, 0.999) and wrapper.defaults['eps'] == 1e-8
    assert wrapper.clip_grad_kwargs == dict(clip_factor=0.01)
    decay = run.decay()
    for key, parameter in run.runner.model.named_parameters():
        assert decay.pop(key) == (0 if parameter.ndim == 1 else 0.025), key
    assert not decay
    block = 'backbone.stages.0.blocks.3'
    decay = run.decay()
    assert decay[f'{block}.attn_scale'] == decay[f'{block}.attn.score_weight'] == 0.025


def test_average_is_kept_and_not_evaluated(recipe):
    hook = recipe(NAME).hook('EMAHook')
    hook.before_run(recipe(NAME).runner)
    assert 1 - hook.ema_model.momentum == pytest.approx(0.99996)
    assert hook.ema_model.update_buffers and not hook.evaluate_on_ema


def test_no_stochastic_depth(recipe):
    rates = [module.drop_prob for module in recipe(NAME).runner.model.modules()
             if type(module).__name__ == 'DropPath']
    assert rates == [0] * 4


@pytest.mark.parametrize('arch', VARIANTS)
def test_augmentation(arch, recipe):
    name = f'cls/swiftformer_{arch}_300e'
    steps = transforms(name)
    colour = 'ColorJitter' if arch == 'xs' else 'RandAugment'
    assert list(steps) == ['LoadImageFromFile', 'RandomResizedCrop', 'RandomFlip',
                           colour, 'RandomErasing', 'PackInputs']
    crop = steps['RandomResizedCrop']
    assert (crop.scale, crop.interpolation) == ((224, 224), 'bicubic')
    if arch == 'xs':
        jitter = steps['ColorJitter']
        assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (
            (0.6, 1.4), (0.6, 1.4), (0.6, 1.4), None)
    else:
        check_rand_augment(steps['RandAugment'], 2, 9, 0.5)
    assert (steps['RandomErasing'].erase_prob, steps['RandomErasing'].mode) == (
        0.25, 'rand')
    run = recipe(name)
    if arch in ('xs', 's'):
        assert run.runner.model.data_preprocessor.batch_augments is None
    else:
        assert mixing(run.runner.model) == dict(Mixup=0.8, CutMix=1.0)


def test_augmentation_is_repeated(recipe):
    sampler = recipe(NAME).runner.train_dataloader.sampler
    indices = list(sampler)[:300]
    assert sorted(indices.count(i) for i in set(indices)) == [3] * 100


def test_loss(recipe, monkeypatch):
    model = recipe(NAME).runner.model
    assert model.teacher_cfg['model_name'] == 'regnety_160'
    torch.manual_seed(0)
    feats = (torch.randn(2, 384, 2, 2), )
    data_samples, scores = samples()
    labels = torch.tensor([2, 9])
    monkeypatch.setattr(type(model), 'extract_feat', lambda self, inputs: feats)
    monkeypatch.setattr(type(model), 'teacher_labels', lambda self, inputs: labels)
    losses = model.loss(None, data_samples)
    logits, dist_logits = model.head(feats)
    torch.testing.assert_close(
        sum(losses.values()), 0.5 * soft_cross_entropy(logits, scores)
        + 0.5 * F.cross_entropy(dist_logits, labels))


@pytest.mark.parametrize('arch', VARIANTS)
def test_evaluation(arch):
    assert evaluated(f'cls/swiftformer_{arch}_300e') == (256, 224)
