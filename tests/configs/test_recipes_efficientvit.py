"""What a runner does with the recipes of LowFormer and ReduceFormer, against the
published settings.
"""
import math

import pytest
import torch
from config_grid import load
from recipe_runner import check_rand_augment, evaluated, mixing, samples, transforms
from torch.nn import functional as F


def published(batch, accumulation, lr, augmentation, erasing, alpha, mesa, drop_path):
    """A row of the table: lr per GPU, RandAugment's (n, m), and drop path's (rate,
    number of branches that are skipped).
    """
    return locals()


PUBLISHED = {
    'lowformer_b0': published(170, 1, 3.32e-4, (1, 3), 0, 0.1, False, (0.05, 0)),
    'lowformer_b1': published(128, 1, 2.5e-4, (1, 3), 0, 0.1, False, (0.05, 0)),
    'lowformer_b15': published(170, 1, 1.66e-4, (2, 6), 0, 0.3, False, (0.1, 0)),
    # the paper's MESA of b2 was off by mistake
    'lowformer_b2': published(170, 1, 1.25e-4, (2, 5), 0.2, 0.2, True, (0.1, 2)),
    'lowformer_b3': published(75, 4, 0.94e-4, (2, 5), 0.2, 0.2, True, (0.1, 2)),
    'lowformer_e1': published(100, 2, 1e-4, (2, 6), 0, 0.3, False, (0.1, 0)),
    'lowformer_e2': published(50, 4, 1e-4, (2, 5), 0.2, 0.2, True, (0.1, 1)),
    'lowformer_e3': published(50, 8, 0.625e-4, (2, 5), 0.2, 0.3, True, (0.1, 2)),
    'reduceformer_b1': published(128, 1, 2.5e-4, (1, 3), 0, 0.1, False, (0.05, 0)),
    'reduceformer_b2': published(128, 1, 4e-4, (2, 5), 0.2, 0.2, False, (0.1, 1)),
    'reduceformer_b3': published(128, 1, 4e-4, (2, 5), 0.2, 0.2, True, (0.1, 0)),
}
RESOLUTIONS = dict(lowformer=[128, 160, 192, 224],
                   reduceformer=[128, 160, 192, 224, 256, 288])
EVERY_VARIANT = pytest.mark.parametrize('variant', PUBLISHED)
EXAMPLES = pytest.mark.parametrize(
    'variant', ['lowformer_b0', 'lowformer_e2', 'reduceformer_b1'])


def name(variant):
    return f'cls/{variant}_300e'


@EVERY_VARIANT
def test_batch_learning_rate_and_clipping(variant):
    config, row = load(name(variant)), PUBLISHED[variant]
    wrapper = config.optim_wrapper
    assert config.train_dataloader.batch_size == row['batch']
    assert config.auto_scale_lr == dict(
        enable=False, base_batch_size=8 * row['batch'])
    assert wrapper.get('accumulative_counts', 1) == row['accumulation']
    assert wrapper.optimizer.lr == pytest.approx(8 * row['accumulation'] * row['lr'])
    # of gradients that are averaged here, and summed in the original
    assert wrapper.clip_grad == dict(
        type='value', clip_value=pytest.approx(2 / row['accumulation']))
    assert wrapper.optimizer.weight_decay == 0.1


@EVERY_VARIANT
def test_augmentation(variant):
    config, row = load(name(variant)), PUBLISHED[variant]
    steps = transforms(name(variant))
    expected = ['BatchResolution', 'LoadImageFromFile', 'BatchResizedCrop',
                'RandomFlip', 'RandAugment', 'RandomErasing', 'PackInputs']
    assert list(steps) == [
        step for step in expected if step != 'RandomErasing' or row['erasing']]
    check_rand_augment(steps['RandAugment'], *row['augmentation'], 1.0)
    crop = steps['BatchResizedCrop']
    assert len(crop.interpolations) == 6 and crop.crop_ratio_range == (0.08, 1.0)
    if row['erasing']:
        erasing = steps['RandomErasing']
        assert (erasing.erase_prob, erasing.mode) == (row['erasing'], 'const')
    assert [augment.alpha for augment in config.model.train_cfg.augments] == [
        row['alpha']] * 2


@EVERY_VARIANT
def test_hooks(variant):
    hooks = {hook.type: hook for hook in load(name(variant)).custom_hooks}
    row = PUBLISHED[variant]
    assert ('MESAHook' in hooks) == row['mesa']
    assert ('AccumulationRestartHook' in hooks) == (row['accumulation'] > 1)
    drop_path = hooks['DropPathProgressHook']
    assert (drop_path.rate, drop_path.get('skip', 0)) == row['drop_path']
    assert hooks['ReestimateBNHook'] == dict(
        type='ReestimateBNHook', num_samples=16000, batch_size=100, resolution=224)


@EXAMPLES
def test_schedule(variant, recipe):
    run, row = recipe(name(variant)), PUBLISHED[variant]
    length = 1281167 // 8 // row['batch']
    assert run.epoch_length == length and run.loop.max_iters == 320 * length
    lr = 8 * row['accumulation'] * row['lr']
    for epoch, iteration, share in (
            (0, 0, 0), (0, 10, 10 / (20 * length)), (10, 0, 0.5), (20, 0, 1),
            (170, 0, 0.5), (245, 7, (1 + math.cos(
                math.pi * (225 + 7 / length) / 300)) / 2), (320, -1, 0)):
        assert run.lr(epoch, iteration) == pytest.approx(share * lr, abs=1e-9)


@EXAMPLES
def test_optimizer(variant, recipe):
    run = recipe(name(variant))
    wrapper = run.runner.optim_wrapper
    assert type(wrapper.optimizer) is torch.optim.AdamW
    assert wrapper.defaults['betas'] == (0.9, 0.999) and wrapper.defaults['eps'] == 1e-8
    assert wrapper.clip_func is torch.nn.utils.clip_grad_value_
    decay, model = run.decay(), run.runner.model
    # exceptions by the original's names: "norm" and "bias"
    other_names = [key for key in decay if key.endswith('reduce.1.weight')
                   or key.endswith(('attn.body.0.weight', 'mlp.body.0.weight'))]
    assert len(other_names) == (3 * 7 if variant == 'lowformer_b0' else 0)
    for key, parameter in model.named_parameters():
        exempt = parameter.ndim == 1 and key not in other_names
        assert decay.pop(key) == (0 if exempt else 0.1), key
    assert not decay


@EXAMPLES
def test_resolutions(variant, recipe):
    run = recipe(name(variant))
    batches = run.runner.train_dataloader.batch_sampler
    choices = RESOLUTIONS[variant.split('_')[0]]
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
    for steps in (0, 1, 2000, 10000, 300000):
        assert hook.ema_model.decay(steps) == pytest.approx(
            0.9998 * (1 - math.exp(-steps / 2000)))


def test_drop_path_of_lowformer(recipe):
    run = recipe(name('lowformer_b0'))
    run.hook('DropPathProgressHook').before_train(run.runner)
    # three blocks in stage 3 and four in stage 4, each local, attention, MLP; no
    # residual blocks before
    order = [f'backbone.stages.{stage}.blocks.{i}.{branch}.drop_path'
             for stage, depth in ((2, 3), (3, 4)) for i in range(depth)
             for branch in ('local', 'attn', 'mlp')]
    expected = {key: 0.05 * (i + 1) / 21 for i, key in enumerate(order)}
    half = 20 / 320 + 0.5 * 300 / 320
    for progress, share in ((0, 0), (20 / 320, 0), (half, 0.5), (1, 1)):
        assert run.rates(progress) == pytest.approx(
            {key: share * rate for key, rate in expected.items()}, abs=1e-7)


def test_drop_path_with_a_stem_and_skipped_branches(recipe):
    run = recipe(name('lowformer_e2'))
    run.hook('DropPathProgressHook').before_train(run.runner)
    rates = run.rates(1)
    # of 1 + 2 + 4 + 4 residual blocks the first is skipped; the stem's has no rate
    expected = [0] + [0.1 * (i + 1) / 10 for i in range(10)]
    assert [rate for key, rate in rates.items() if '.stages.' in key] == \
        pytest.approx(expected)
    assert [rate for key, rate in rates.items() if '.stem.' in key] == [0]


def test_drop_path_of_reduceformer(recipe):
    run = recipe(name('reduceformer_b1'))
    run.hook('DropPathProgressHook').before_train(run.runner)
    rates = run.rates(1)
    count = 1 + 2 + 2 * (3 + 4)
    assert [rate for key, rate in rates.items() if '.stages.' in key] == \
        pytest.approx([0.05 * (i + 1) / count for i in range(count)])
    assert [rate for key, rate in rates.items() if '.stem.' in key] == [0]


def test_mesa(recipe):
    run = recipe(name('lowformer_e2'))
    average, hook = run.hook('EMAHook'), run.hook('MESAHook')
    average.before_run(run.runner)
    hook.before_train(run.runner)
    for share, active in ((0, False), (0.24, False), (0.26, True), (0.99, True)):
        hook.before_train_iter(run.at((20 + 300 * share) / 320), 0)
        assert (run.runner.model.mesa is not None) == active
    assert run.runner.model.mesa == (average.ema_model.module, 2.0)
    run.runner.model.mesa = None


@EXAMPLES
def test_loss(variant, recipe):
    model = recipe(name(variant)).runner.model
    assert mixing(model) == dict.fromkeys(['Mixup', 'CutMix'],
                                          PUBLISHED[variant]['alpha'])
    torch.manual_seed(0)
    feats = (torch.randn(2, model.head.conv[0].in_channels, 2, 2), )
    data_samples, scores = samples()
    logits = model.head(feats)
    torch.testing.assert_close(
        model.head.loss(feats, data_samples)['loss'],
        F.binary_cross_entropy_with_logits(logits, 0.9 * scores + 0.1 / 1000))


@pytest.mark.parametrize('arch', ['b0', 'b1', 'b15', 'b2', 'b3', 'e1', 'e2', 'e3'])
def test_evaluation_of_lowformer(arch):
    assert evaluated(f'cls/lowformer_{arch}_300e') == (math.ceil(224 / 0.95), 224)


@pytest.mark.parametrize('size', [224, 256, 288])
@pytest.mark.parametrize('arch, ratio', [('b1', 0.95), ('b2', 1.), ('b3', 1.)])
def test_evaluation_of_reduceformer(arch, ratio, size):
    suffix = '' if size == 224 else f'_r{size}'
    config = f'cls/reduceformer_{arch}{suffix}_300e'
    assert evaluated(config) == (math.ceil(size / ratio), size)
    hooks = {hook.type: hook for hook in load(config).custom_hooks}
    assert hooks['ReestimateBNHook'].resolution == size
    assert hooks['ReestimateBNHook'].get('test', False) == (size != 224)
    same = load(f'cls/reduceformer_{arch}_300e')
    for key in ('model', 'train_dataloader', 'optim_wrapper', 'param_scheduler'):
        assert load(config)[key] == same[key]
    others = [hook for hook in load(config).custom_hooks if 'resolution' not in hook]
    assert others == [hook for hook in same.custom_hooks if 'resolution' not in hook]
