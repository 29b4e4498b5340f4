"""What a runner does with SwiftFormer's recipe. Its values are in test_recipes.py."""
import pytest
import torch
from recipe_runner import (
    check_adamw,
    check_mixing,
    check_rand_augment,
    check_timm_schedule,
    samples,
    soft_cross_entropy,
    transforms,
)
from torch.nn import functional as F

NAME = 'cls/swiftformer_l1_300e'


def test_schedule(recipe):
    check_timm_schedule(recipe(NAME), epochs=(0, 1, 4, 5, 100, 152))


def test_optimizer(recipe):
    run = recipe(NAME)
    check_adamw(run, exempt=lambda key, parameter: parameter.ndim == 1)
    wrapper = run.runner.optim_wrapper
    assert type(wrapper).__name__ == 'AGCOptimWrapper'
    assert wrapper.clip_grad_kwargs == run.value('optim_wrapper.clip_grad')
    decay, block = run.decay(), 'backbone.stages.0.blocks.3'
    assert decay[f'{block}.attn_scale'] > 0 and decay[f'{block}.attn.score_weight'] > 0


def test_average_is_kept_and_not_evaluated(recipe):
    run = recipe(NAME)
    hook = run.hook('EMAHook')
    hook.before_run(run.runner)
    assert hook.ema_model.momentum == run.value('custom_hooks.EMAHook.momentum')
    assert hook.ema_model.update_buffers and not hook.evaluate_on_ema


def test_no_stochastic_depth(recipe):
    rates = [module.drop_prob for module in recipe(NAME).runner.model.modules()
             if type(module).__name__ == 'DropPath']
    assert rates == [0] * 4


@pytest.mark.parametrize('arch', ['xs', 's', 'l1', 'l3'])
def test_augmentation(arch):
    steps = transforms(f'cls/swiftformer_{arch}_300e')
    colour = 'ColorJitter' if arch == 'xs' else 'RandAugment'
    assert list(steps) == ['LoadImageFromFile', 'CheckBitDepth',
                           'RandomResizedCrop', 'RandomFlip',
                           colour, 'RandomErasing', 'PackInputs']
    assert steps['RandomResizedCrop'].scale == (224, 224)
    if arch == 'xs':
        jitter = steps['ColorJitter']
        assert (jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue) == (
            (0.6, 1.4), (0.6, 1.4), (0.6, 1.4), None)
    else:
        check_rand_augment(steps['RandAugment'])


def test_mixing(recipe):
    check_mixing(recipe(NAME))
    model = recipe('cls/swiftformer_xs_300e').runner.model
    assert model.data_preprocessor.batch_augments is None


def test_augmentation_is_repeated(recipe):
    sampler = recipe(NAME).runner.train_dataloader.sampler
    indices = list(sampler)[:300]
    assert sorted(indices.count(i) for i in set(indices)) == [3] * 100


def test_loss(recipe, monkeypatch):
    model = recipe(NAME).runner.model
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
