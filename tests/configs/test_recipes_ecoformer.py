"""What a runner does with EcoFormer's recipes. Their values are in test_recipes.py."""
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

EVERY_RECIPE = pytest.mark.parametrize('name', [
    f'cls/ecoformer_{variant}_{method}' for variant in ('pvt_b0', 'twins_s')
    for method in ('30e', 'softmax_100e')])


@EVERY_RECIPE
def test_schedule(name, recipe):
    check_timm_schedule(recipe(name), epochs=(0, 1, 4, 5, 15, 29))


@EVERY_RECIPE
def test_optimizer(name, recipe):
    run = recipe(name)
    check_adamw(run, exempt=lambda key, parameter: (
        parameter.ndim == 1 or 'pos_conv' in key))
    kernels = [key for key, parameter in run.runner.model.named_parameters()
               if 'pos_conv' in key and parameter.ndim > 1]
    assert len(kernels) == (4 if 'twins' in name else 0)
    wrapper = run.runner.optim_wrapper
    assert wrapper.clip_grad_kwargs == run.value('optim_wrapper.clip_grad')


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
    assert list(steps) == ['LoadImageFromFile', 'CheckBitDepth',
                           'RandomResizedCrop', 'RandomFlip',
                           'RandAugment', 'RandomErasing', 'PackInputs']
    assert steps['RandomResizedCrop'].scale == (224, 224)
    check_rand_augment(steps['RandAugment'])
    run = recipe(name)
    check_mixing(run)
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
