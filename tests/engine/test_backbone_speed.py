"""Compiled backbones, and backbones in the memory format channels last."""
import copy
from types import SimpleNamespace

import pytest
import torch
from mmcv.cnn.bricks import ConvWS2d
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.runner import Runner
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.graph import GraphLowering
from torch._inductor.utils import fresh_inductor_cache
from torch.utils.checkpoint import checkpoint

from mm_efficient.engine import (
    ChannelsLastBackboneHook,
    CompileBackboneHook,
    DropPathProgressHook,
    SeedIterationHook,
)
from mm_efficient.engine.backbone_speed import find_backbones
from mm_efficient.errors import InputError


class Backbone(nn.Module):
    """A convolution, a norm and dropout, recomputed in the backward pass."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.layers = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
        self.seen = None

    def forward(self, x):
        if not torch.compiler.is_compiling():
            self.seen = x
        x = self.norm(self.conv(x))
        return x, checkpoint(self.layers, x, use_reentrant=False)


class Detector(BaseModel):
    """A model whose head has a loop that depends on the data."""

    def __init__(self):
        super().__init__()
        self.backbone = Backbone()
        self.head = nn.Conv2d(4, 1, 1)

    def forward(self, inputs, mode='tensor'):
        maps = self.backbone(torch.stack([*inputs]))
        loss = self.head(maps[1]).square().mean() + maps[0].mean()
        while loss.item() > 1:
            loss = loss / 2
        return dict(loss=loss)


class Images(torch.utils.data.Dataset):
    """Eight images; each batch of two has a size of its own."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        size = [(8, 12), (10, 16), (14, 6), (12, 20)][index // 2]
        return dict(inputs=torch.randn(3, *size, generator=generator))


@pytest.fixture
def counter():
    torch.compiler.reset()
    return CompileCounterWithBackend('aot_eager')


def train(folder, hooks, **settings):
    """Two epochs; returns the trained model and its average."""
    torch.manual_seed(0)
    runner = Runner(
        Detector(), work_dir=str(folder), experiment_name=str(folder.name),
        train_dataloader=dict(
            dataset=Images(), batch_size=2,
            sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.01)),
        custom_hooks=[dict(type='EMAHook'), SeedIterationHook(), *hooks],
        randomness=dict(seed=0), log_level='ERROR',
        default_hooks=dict(checkpoint=dict(type='CheckpointHook', interval=1)),
        **settings)
    model = runner.train()
    hook = next(hook for hook in runner.hooks if isinstance(hook, EMAHook))
    return model, hook.ema_model


def test_training_with_many_sizes(tmp_path, counter):
    """Compiled once; names, results, averages and resumed runs are those of eager."""
    def hooks():
        return [CompileBackboneHook(backend=counter)]
    eager, eager_average = train(tmp_path / 'eager', [])
    model, average = train(tmp_path / 'compiled', hooks())
    assert counter.frame_count == 1
    assert model.backbone._compiled_call_impl is not None
    assert average.module.backbone._compiled_call_impl is None
    for found, expected in (model, eager), (average, eager_average):
        torch.testing.assert_close(found.state_dict(), expected.state_dict(),
                                   rtol=1e-4, atol=1e-6)
    resumed, again = train(tmp_path / 'resumed', hooks(), resume=True,
                           load_from=str(tmp_path / 'compiled/epoch_1.pth'))
    for found, expected in (resumed, model), (again, average):
        state = expected.state_dict()
        assert all(torch.equal(value, state[key])
                   for key, value in found.state_dict().items())


def call(hook, model):
    hook.before_run(SimpleNamespace(
        model=model, logger=MMLogger.get_instance('speed', log_level='ERROR')))


def losses(model, **settings):
    """Loss and gradients of a step of DistributedDataParallel's or the model's."""
    torch.manual_seed(0)
    with torch.autocast('cpu', torch.bfloat16, **settings):
        loss = model(Images()[0]['inputs'][None], mode='loss')['loss']
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def test_several_processes_and_mixed_precision(tmp_path, counter):
    """DistributedDataParallel cuts graphs otherwise, and fails with checkpointing."""
    model = Detector()
    expected = losses(copy.deepcopy(model))
    torch.distributed.init_process_group(
        'gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        wrapped = MMDistributedDataParallel(model)
        call(CompileBackboneHook(backend=counter), wrapped)
        found = losses(wrapped)
    finally:
        torch.distributed.destroy_process_group()
    assert counter.frame_count == 1
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-3)


def test_channels_last(counter):
    """The backbone alone: what it returns has the usual layout."""
    model, other = Detector().eval(), Detector().eval()
    other.load_state_dict(model.state_dict())
    hook = ChannelsLastBackboneHook()
    for _ in range(2):  # a test after a training
        call(hook, other)
    x = Images()[0]['inputs'][None]
    expected, found = model.backbone(x), other.backbone(x)
    assert len(other.backbone._forward_hooks) == 1
    assert other.backbone.seen.is_contiguous(memory_format=torch.channels_last)
    assert other.backbone.conv.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(y.is_contiguous() for y in found)
    torch.testing.assert_close(found, expected)
    call(CompileBackboneHook(backend=counter), other)
    torch.testing.assert_close(other.backbone(x), expected)
    assert counter.frame_count == 1


def test_rates_that_change_in_every_iteration():
    hooks = [DropPathProgressHook()]
    with pytest.raises(InputError, match='DropPathProgressHook, which raises them'):
        CompileBackboneHook().before_train(SimpleNamespace(hooks=hooks))


def test_backbones_are_found():
    first, second = Detector(), Detector()
    model = nn.ModuleDict(dict(student=first, teacher=second, other=nn.Identity()))
    assert find_backbones(model) == [first.backbone, second.backbone]
    with pytest.raises(InputError, match='expects a model with a backbone, got Linear'):
        call(CompileBackboneHook(), nn.Linear(1, 1))


class TwoInputs(nn.Module):
    """Weights that it reads itself, images and depth in a list or by name, a dict."""

    def __init__(self):
        super().__init__()
        self.color = ConvWS2d(3, 4, 3, padding=1)
        self.depth = nn.Conv2d(1, 4, 3, padding=1)

    def forward(self, images, depth=None):
        images, depth = images if depth is None else (images, depth)
        return dict(maps=[self.color(images) + self.depth(depth)])


@pytest.mark.parametrize('by_name', [False, True])
def test_backbones_of_other_kinds(counter, by_name):
    model = TwoInputs()
    other = nn.ModuleDict(dict(backbone=copy.deepcopy(model)))
    call(ChannelsLastBackboneHook(), other)
    call(CompileBackboneHook(backend=counter), other)
    assert other.backbone.color.weight.is_contiguous()
    for size in ((8, 12), (10, 16), (14, 6)):
        images, depth = torch.randn(2, 3, *size), torch.randn(2, 1, *size)
        found = (other.backbone(images=images, depth=depth) if by_name
                 else other.backbone([images, depth]))
        assert found['maps'][0].is_contiguous()
        torch.testing.assert_close(found, model(images, depth))
    assert counter.frame_count == 1


class Tokens(nn.Module):
    """A linear layer, and a depthwise convolution of what it computes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, stride=4)
        self.fc = nn.Linear(8, 16)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, groups=16)

    def forward(self, x):
        x = self.fc(self.stem(x).permute(0, 2, 3, 1))
        return self.conv(x.permute(0, 3, 1, 2))


def test_inductor_lowers_a_training_on_tokens(monkeypatch):
    """Up to where it would write C++, which takes a minute to compile."""
    def stop(graph):
        raise RuntimeError('lowered')
    monkeypatch.setattr(GraphLowering, 'codegen', stop)
    model = Tokens()
    call(CompileBackboneHook(), nn.ModuleDict(dict(backbone=model)))
    with fresh_inductor_cache(), pytest.raises(Exception, match='lowered'):
        model(torch.randn(2, 3, 64, 96))


@pytest.mark.slow  # compiles C++
def test_inductor_compiles_once_for_all_sizes():
    model = Tokens()
    reference, counter = copy.deepcopy(model), CompileCounterWithBackend('inductor')
    call(CompileBackboneHook(backend=counter), nn.ModuleDict(dict(backbone=model)))
    for size in ((64, 96), (96, 160), (32, 224)):
        x = torch.randn(2, 3, *size)
        for each in (model, reference):
            each.zero_grad()
            each(x).square().sum().backward()
        for parameter, expected in zip(model.parameters(), reference.parameters()):
            torch.testing.assert_close(parameter.grad, expected.grad, rtol=1e-3,
                                       atol=1e-3 * float(expected.grad.abs().max()))
    assert counter.frame_count == 1
