"""What a runner does with SOFT's recipe, against the published settings."""
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

NAME = 'cls/soft_tiny_300e'
# images per GPU, of 8, and lr per 1024 images: plain and Norm
PUBLISHED = dict(
    tiny=(128, 1e-3, 1e-3), small=(128, 1e-3, 1e-3), medium=(32, 3.5e-4, 4e-4),
    large=(32, 3.3e-4, 3.3e-4), huge=(32, 2.7e-4, 2.7e-4))


@pytest.mark.parametrize('arch', PUBLISHED)
@pytest.mark.parametrize('norm', [0, 1])
def test_batch_and_learning_rate(arch, norm):
    config = load(f'cls/soft_{arch}{"_norm" * norm}_300e')
    batch, *lr = PUBLISHED[arch]
    assert config.train_dataloader.batch_size == batch
    assert config.optim_wrapper.optimizer.lr == pytest.approx(
        lr[norm] * 8 * batch / 1024)
    assert config.auto_scale_lr == dict(enable=False, base_batch_size=8 * batch)
    assert config.param_scheduler == load(NAME).param_scheduler
    assert config.custom_hooks == load(NAME).custom_hooks


def test_schedule(recipe):
    run = recipe(NAME)
    assert run.epoch_length == 1281167 // 1024
    assert run.loop.max_epochs == 300
    for epoch in (0, 1, 9, 10, 100, 155, 299):
        expected = timm_lr(epoch, 1e-3, 300, 10, 1e-6, 5e-5)
        assert run.lr(epoch) == pytest.approx(expected)
    assert run.lr(0) == pytest.approx(1e-6)
    assert run.lr(5) == pytest.approx(1e-6 + 0.5 * (1e-3 - 1e-6))
    assert run.lr(299) == pytest.approx(5e-5, rel=0.001)


def test_optimizer(recipe):
    wrapper = recipe(NAME).runner.optim_wrapper
    assert type(wrapper.optimizer) is torch.optim.AdamW
    assert wrapper.defaults['betas'] == (0.9, 0.999) and wrapper.defaults['eps'] == 1e-8
    assert wrapper.clip_grad_kwargs == dict(max_norm=1.0)
    assert wrapper.clip_func is torch.nn.utils.clip_grad_norm_
    decay = recipe(NAME).decay()
    for key, parameter in recipe(NAME).runner.model.named_parameters():
        exempt = parameter.ndim == 1 or key.endswith('cls_token')
        assert decay.pop(key) == (0 if exempt else 0.05), key
    assert not decay


def test_average(recipe):
    hook = recipe(NAME).hook('EMAHook')
    hook.before_run(recipe(NAME).runner)
    assert 1 - hook.ema_model.momentum == pytest.approx(0.99996)
    assert hook.ema_model.update_buffers and hook.evaluate_on_ema


def test_stochastic_rate(recipe):
    stages = recipe(NAME).runner.model.backbone.stages
    rates = [block.drop.p if stage is not stages[3] else block.drop_path.drop_prob
             for stage in stages for block in stage.blocks]
    assert rates == pytest.approx([0.1 * i / 7 for i in range(8)])


def test_augmentation(recipe):
    steps = transforms(NAME)
    assert list(steps) == ['LoadImageFromFile', 'RandomChoice', 'RandomFlip',
                           'RandAugment', 'RandomErasing', 'PackInputs']
    crops = [branch.transforms[0] for branch in steps['RandomChoice'].transforms]
    assert [crop.interpolation for crop in crops] == ['bilinear', 'bicubic']
    for crop in crops:
        assert crop.scale == (224, 224) and crop.crop_ratio_range == (0.08, 1.0)
    check_rand_augment(steps['RandAugment'], 2, 9, 0.5)
    erasing = steps['RandomErasing']
    assert (erasing.erase_prob, erasing.mode) == (0.25, 'rand')
    assert mixing(recipe(NAME).runner.model) == dict(Mixup=0.8, CutMix=1.0)


def test_loss(recipe):
    model = recipe(NAME).runner.model
    torch.manual_seed(0)
    feats = (torch.randn(2, 512), )
    data_samples, scores = samples()
    torch.testing.assert_close(
        model.head.loss(feats, data_samples)['loss'],
        soft_cross_entropy(model.head(feats), scores))


def test_evaluation():
    assert evaluated(NAME) == (248, 224)
