from types import SimpleNamespace

import pytest
from mmcv.cnn.bricks import DropPath
from mmengine.hooks import EMAHook
from torch import nn

from mm_efficient.engine.progress import DropPathProgressHook, MESAHook
from mm_efficient.models.classifiers import MESAClassifier


def block(rate):
    """A block with branches in another order than they count in."""
    return nn.ModuleDict(
        {name: nn.Sequential(DropPath(rate)) for name in ('attn', 'mlp', 'local')})


@pytest.fixture
def runner():
    model = nn.Module()
    model.stem = DropPath(0.5)
    model.stages = nn.ModuleList([nn.Sequential(DropPath(0.1)), block(0.2), block(0.4)])
    return SimpleNamespace(model=model, iter=0, max_iters=100, hooks=[])


def rates(hook, runner, iteration):
    runner.iter = iteration
    hook.before_train_iter(runner, iteration)
    return {name: module.drop_prob for name, module in runner.model.named_modules()
            if isinstance(module, DropPath)}


def test_rates_of_the_model_grow(runner):
    hook = DropPathProgressHook(warmup=0.2)
    hook.before_train(runner)
    for iteration, progress in ((0, 0.), (20, 0.), (60, 0.5), (100, 1.)):
        now = rates(hook, runner, iteration)
        assert now['stem'] == pytest.approx(progress * 0.5)
        assert now['stages.0.0'] == pytest.approx(progress * 0.1)
        assert now['stages.2.mlp.0'] == pytest.approx(progress * 0.4)


def test_rates_by_branch(runner):
    hook = DropPathProgressHook(rate=0.6, skip=1, order=('local', 'attn', 'mlp'))
    hook.before_train(runner)
    now = rates(hook, runner, 100)
    assert now == pytest.approx({
        'stem': 0.5, 'stages.0.0': 0., 'stages.1.local.0': 0.1,
        'stages.1.attn.0': 0.2, 'stages.1.mlp.0': 0.3, 'stages.2.local.0': 0.4,
        'stages.2.attn.0': 0.5, 'stages.2.mlp.0': 0.6})
    assert rates(hook, runner, 50)['stages.2.mlp.0'] == pytest.approx(0.3)


def test_a_resumed_training_has_the_same_rates(runner):
    hook = DropPathProgressHook(rate=0.6)
    hook.before_train(runner)
    expected = rates(hook, runner, 70)
    hook.before_train(runner)
    assert rates(hook, runner, 70) == expected


def test_mesa_begins_when_it_is_time(runner):
    ema = EMAHook()
    ema.ema_model = SimpleNamespace(module=nn.Dropout())
    runner.model = MESAClassifier.__new__(MESAClassifier)
    nn.Module.__init__(runner.model)
    runner.hooks = [ema]
    hook = MESAHook(weight=3., begin=0.25, warmup=0.2)
    hook.before_train(runner)
    for iteration, active in ((0, False), (39, False), (40, True), (99, True)):
        runner.iter = iteration
        hook.before_train_iter(runner, iteration)
        assert (runner.model.mesa is not None) == active
    averaged, weight = runner.model.mesa
    assert averaged is ema.ema_model.module and not averaged.training and weight == 3
    assert not list(runner.model.state_dict()) + list(runner.model.children())


def test_mesa_needs_an_average_and_a_classifier(runner):
    with pytest.raises(ValueError, match='got Module and no EMAHook'):
        MESAHook().before_train(runner)
