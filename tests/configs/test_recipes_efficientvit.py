"""What a runner does with the recipes of LowFormer and ReduceFormer.

Their values are in test_recipes.py.
"""
import math

import pytest
import torch
from config_grid import LEAVES, differing_keys, load
from recipe_runner import (
    GPUS,
    IMAGES,
    check_adamw,
    check_mixing,
    check_rand_augment,
    samples,
    transforms,
)
from torch.nn import functional as F

EXAMPLES = pytest.mark.parametrize(
    'variant', ['lowformer_b0', 'lowformer_e2', 'reduceformer_b1'])


def name(variant):
    return f'cls/{variant}_300e'


@EXAMPLES
def test_augmentation(variant, recipe):
    steps = transforms(name(variant))
    erasing = ['RandomErasing'] if variant == 'lowformer_e2' else []
    assert list(steps) == ['BatchResolution', 'LoadImageFromFile', 'CheckBitDepth',
                           'BatchResizedCrop',
                           'RandomFlip', 'RandAugment', *erasing, 'PackInputs']
    check_rand_augment(steps['RandAugment'])
    crop = steps['BatchResizedCrop']
    assert len(crop.interpolations) == 6 and crop.crop_ratio_range == (0.08, 1.0)
    check_mixing(recipe(name(variant)))


@pytest.mark.parametrize('config', [
    config for config, leaf in LEAVES.items()
    if leaf.task == 'cls' and leaf.variant.startswith('lowformer_')])
def test_accumulation(config):
    wrapper = load(config).optim_wrapper
    count = wrapper.get('accumulative_counts', 1)
    hooks = [hook.type for hook in load(config).custom_hooks]
    assert ('AccumulationRestartHook' in hooks) == (count > 1)
    # of gradients that are averaged here, and summed in the original
    assert wrapper.clip_grad.clip_value * count == 2.0


@EXAMPLES
def test_schedule(variant, recipe):
    run = recipe(name(variant))
    length = IMAGES // GPUS // run.value('train_dataloader.batch_size')
    assert run.epoch_length == length and run.loop.max_iters == 320 * length
    lr = run.value('optim_wrapper.optimizer.lr')
    for epoch, iteration, share in (
            (0, 0, 0), (0, 10, 10 / (20 * length)), (10, 0, 0.5), (20, 0, 1),
            (170, 0, 0.5), (245, 7, (1 + math.cos(
                math.pi * (225 + 7 / length) / 300)) / 2), (320, -1, 0)):
        assert run.lr(epoch, iteration) == pytest.approx(share * lr, abs=1e-9)


@EXAMPLES
def test_optimizer(variant, recipe):
    run = recipe(name(variant))
    assert run.runner.optim_wrapper.clip_func is torch.nn.utils.clip_grad_value_
    # exceptions by the original's names: "norm" and "bias"
    other_names = [key for key in run.decay() if key.endswith('reduce.1.weight')
                   or key.endswith(('attn.body.0.weight', 'mlp.body.0.weight'))]
    assert len(other_names) == (3 * 7 if variant == 'lowformer_b0' else 0)
    check_adamw(run, exempt=lambda key, parameter: (
        parameter.ndim == 1 and key not in other_names))


@EXAMPLES
def test_resolutions(variant, recipe):
    run = recipe(name(variant))
    batches = run.runner.train_dataloader.batch_sampler
    choices = run.value('train_dataloader.batch_sampler.resolutions')
    drawn = [batches.draw(epoch, number) for epoch in (0, 200) for number in range(600)]
    assert drawn[:600] != drawn[600:]
    for resolution in choices:
        assert drawn.count(resolution) == pytest.approx(1200 / len(choices), rel=0.2)
    batch = next(iter(batches))
    assert {index.resolution for index in batch} == {drawn[0]}


@EXAMPLES
def test_average(variant, recipe):
    run = recipe(name(variant))
    hook = run.hook('EMAHook')
    hook.before_run(run.runner)
    assert hook.evaluate_on_ema
    decay = 1 - run.value('custom_hooks.EMAHook.momentum')
    warmup = run.value('custom_hooks.EMAHook.warmup')
    for steps in (0, 1, 2000, 10000, 300000):
        assert hook.ema_model.decay(steps) == pytest.approx(
            decay * (1 - math.exp(-steps / warmup)))


def test_drop_path_of_lowformer(recipe):
    run = recipe(name('lowformer_b0'))
    run.hook('DropPathProgressHook').before_train(run.runner)
    rate = run.value('custom_hooks.DropPathProgressHook.rate')
    # three blocks in stage 3 and four in stage 4, each local, attention, MLP; no
    # residual blocks before
    order = [f'backbone.stages.{stage}.blocks.{i}.{branch}.drop_path'
             for stage, depth in ((2, 3), (3, 4)) for i in range(depth)
             for branch in ('local', 'attn', 'mlp')]
    expected = {key: rate * (i + 1) / 21 for i, key in enumerate(order)}
    half = 20 / 320 + 0.5 * 300 / 320
    for progress, share in ((0, 0), (20 / 320, 0), (half, 0.5), (1, 1)):
        assert run.rates(progress) == pytest.approx(
            {key: share * value for key, value in expected.items()}, abs=1e-7)


def test_drop_path_with_a_stem_and_skipped_branches(recipe):
    run = recipe(name('lowformer_e2'))
    run.hook('DropPathProgressHook').before_train(run.runner)
    rates, rate = run.rates(1), run.value('custom_hooks.DropPathProgressHook.rate')
    # of 1 + 2 + 4 + 4 residual blocks the first is skipped; the stem's has no rate
    expected = [0] + [rate * (i + 1) / 10 for i in range(10)]
    assert [value for key, value in rates.items() if '.stages.' in key] == \
        pytest.approx(expected)
    assert [value for key, value in rates.items() if '.stem.' in key] == [0]


def test_drop_path_of_reduceformer(recipe):
    run = recipe(name('reduceformer_b1'))
    run.hook('DropPathProgressHook').before_train(run.runner)
    rates, rate = run.rates(1), run.value('custom_hooks.DropPathProgressHook.rate')
    count = 1 + 2 + 2 * (3 + 4)
    assert [value for key, value in rates.items() if '.stages.' in key] == \
        pytest.approx([rate * (i + 1) / count for i in range(count)])
    assert [value for key, value in rates.items() if '.stem.' in key] == [0]


def test_mesa(recipe):
    run = recipe(name('lowformer_e2'))
    average, hook = run.hook('EMAHook'), run.hook('MESAHook')
    average.before_run(run.runner)
    hook.before_train(run.runner)
    for share, active in ((0, False), (0.24, False), (0.26, True), (0.99, True)):
        hook.before_train_iter(run.at((20 + 300 * share) / 320), 0)
        assert (run.runner.model.mesa is not None) == active
    assert run.runner.model.mesa == (
        average.ema_model.module, run.value('custom_hooks.MESAHook.weight'))
    run.runner.model.mesa = None


@EXAMPLES
def test_loss(variant, recipe):
    model = recipe(name(variant)).runner.model
    torch.manual_seed(0)
    feats = (torch.randn(2, model.head.conv[0].in_channels, 2, 2), )
    data_samples, scores = samples()
    logits = model.head(feats)
    torch.testing.assert_close(
        model.head.loss(feats, data_samples)['loss'],
        F.binary_cross_entropy_with_logits(logits, 0.9 * scores + 0.1 / 1000))


@pytest.mark.parametrize('size', [256, 288])
@pytest.mark.parametrize('arch', ['b1', 'b2', 'b3'])
def test_evaluation_at_another_resolution_is_the_same_training(arch, size):
    same, config = (load(name(f'reduceformer_{arch}{suffix}'))
                    for suffix in ('', f'_r{size}'))
    assert differing_keys(same, config) <= {
        f'{loader}_dataloader.dataset.pipeline.{step}' for loader in ('val', 'test')
        for step in ('ResizeEdge.scale', 'CenterCrop.crop_size')
    } | {f'custom_hooks.PreciseBNEvalHook.{key}' for key in ('resolution', 'test')}
