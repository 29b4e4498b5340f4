"""What a runner does with SOFT's recipe. Its values are in test_recipes.py."""
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

NAME = 'cls/soft_tiny_300e'


def test_schedule(recipe):
    check_timm_schedule(recipe(NAME), epochs=(0, 1, 9, 10, 100, 155))


def test_optimizer(recipe):
    run = recipe(NAME)
    check_adamw(run, exempt=lambda key, parameter: (
        parameter.ndim == 1 or key.endswith('cls_token')))
    wrapper = run.runner.optim_wrapper
    assert wrapper.clip_func is torch.nn.utils.clip_grad_norm_
    assert wrapper.clip_grad_kwargs == run.value('optim_wrapper.clip_grad')


def test_average(recipe):
    run = recipe(NAME)
    hook = run.hook('EMAHook')
    hook.before_run(run.runner)
    assert hook.ema_model.momentum == run.value('custom_hooks.EMAHook.momentum')
    assert hook.ema_model.update_buffers and hook.evaluate_on_ema


def test_stochastic_rate(recipe):
    stages = recipe(NAME).runner.model.backbone.stages
    rates = [block.drop.p if stage is not stages[3] else block.drop_path.drop_prob
             for stage in stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])


def test_augmentation(recipe):
    steps = transforms(NAME)
    assert list(steps) == ['LoadImageFromFile', 'CheckBitDepth',
                           'RandomChoice', 'RandomFlip',
                           'RandAugment', 'RandomErasing', 'PackInputs']
    crops = [branch.transforms[0] for branch in steps['RandomChoice'].transforms]
    assert len(crops) == 2
    for crop in crops:
        assert crop.scale == (224, 224) and crop.crop_ratio_range == (0.08, 1.0)
    check_rand_augment(steps['RandAugment'])
    check_mixing(recipe(NAME))


def test_loss(recipe):
    model = recipe(NAME).runner.model
    torch.manual_seed(0)
    feats = (torch.randn(2, 512), )
    data_samples, scores = samples()
    torch.testing.assert_close(
        model.head.loss(feats, data_samples)['loss'],
        soft_cross_entropy(model.head(feats), scores))
