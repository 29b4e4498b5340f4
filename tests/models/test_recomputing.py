"""What the backward pass recomputes: same values and gradients, less kept."""
import copy
import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from test_contract import SHALLOW, build, image
from torch import nn

from mm_efficient.models import recomputing
from mm_efficient.models.ecoformer.layers import ConvMlp
from mm_efficient.models.layers import ONEDNN_MIN_PIXELS, PointwiseConv
from mm_efficient.models.recomputing import gelu_then
from mm_efficient.models.soft import SOFT
from mm_efficient.models.soft.backbone import Mlp as SOFTMlp
from mm_efficient.models.swiftformer.backbone import Mlp as SwiftFormerMlp

LAYERS = {'linear': (nn.Linear, (2, 3, 5, 12)), 'bare': (nn.Linear, (7, 12)),
          'convolution': (PointwiseConv, (2, 12, 16, 9)),
          'small convolution': (PointwiseConv, (1, 12, 3, 5))}
CASES = [(name, False) for name in LAYERS] + [('small convolution', True)]


@pytest.fixture(autouse=True)
def recompute_small_maps(monkeypatch):
    monkeypatch.setattr(recomputing, 'MIN_ENTRIES', 1)


class Plain(nn.Linear):
    """Not known to gelu_then, which calls it as a module."""


def step(function, module, x, dtype=torch.float32):
    """Output of a training step, and all gradients."""
    x = x.clone().requires_grad_()
    with torch.autocast('cpu', torch.bfloat16, enabled=dtype == torch.bfloat16):
        out = function(x * 1)  # as in a model not a leaf
    (out.float() * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
    gradients = [x.grad, *(p.grad for p in module.parameters())]
    module.zero_grad()
    return [out, *gradients]


def kept(function, x):
    """Elements of what PyTorch saves for the backward pass, each storage once."""
    found = {}

    def pack(tensor):
        found[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function(x)
    assert out.requires_grad
    return sum(found.values()) // 4


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('approximate', ['none', 'tanh'])
@pytest.mark.parametrize('name, channels_last', CASES)
def test_gelu_is_recomputed(name, channels_last, approximate, dtype):
    cls, shape = LAYERS[name]
    many = shape[0] * math.prod(shape[2:]) >= ONEDNN_MIN_PIXELS
    assert cls is nn.Linear or many == (name == 'convolution')
    torch.manual_seed(0)
    layer, x = cls(12, 4), torch.randn(shape).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    results = step(partial(gelu_then, layer, approximate=approximate), layer, x, dtype)
    gelu = partial(F.gelu, approximate=approximate)
    expected = step(lambda x: layer(gelu(x)), layer, x, dtype)
    for ours, theirs in zip(results, expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize('module, shape', [
    (SOFTMlp(8, 'tanh'), (1, 10, 12, 8)), (ConvMlp(8, 4), (1, 10, 12, 8)),
    (SwiftFormerMlp(8, 4), (1, 8, 12, 12))], ids=['soft', 'ecoformer', 'swiftformer'])
def test_mlp_keeps_one_of_two(module, shape):
    x = torch.randn(shape, requires_grad=True)
    plain = copy.deepcopy(module)
    plain.fc2.register_forward_hook(lambda *_: None)  # which has to see the GELU
    assert kept(plain, x) - kept(module, x) == 4 * x.numel()
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(plain)(x), copy.deepcopy(module)(x))


@pytest.mark.parametrize('name', ['linear', 'convolution'])
def test_gradients_of_gradients(name):
    cls, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = cls(3, 2).double()
    shape = (2, 4, 3) if name == 'linear' else (1, 3, 2, 4)
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def function(x, weight, bias):
        return torch.func.functional_call(  # by parameters that gradcheck can move
            Called(layer), {'layer.weight': weight, 'layer.bias': bias}, (x, ))
    assert torch.autograd.gradcheck(function, (x, layer.weight, layer.bias))
    assert torch.autograd.gradgradcheck(function, (x, layer.weight, layer.bias))


class Called(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return gelu_then(self.layer, x)


def test_modules_are_called_where_someone_looks(monkeypatch):
    x = torch.randn(2, 12, requires_grad=True)
    layer = Called(nn.Linear(12, 4))
    calls = [call.target for call in torch.fx.symbolic_trace(layer).graph.nodes
             if call.op == 'call_module']
    assert calls == ['layer']
    assert 'AfterGelu' in type(layer(x).grad_fn).__name__
    monkeypatch.setattr(recomputing, 'MIN_ENTRIES', x.numel() + 1)
    assert 'AfterGelu' not in type(layer(x).grad_fn).__name__
    monkeypatch.setattr(recomputing, 'MIN_ENTRIES', 1)
    assert 'AfterGelu' not in type(layer.eval()(x).grad_fn).__name__
    assert 'AfterGelu' not in type(Called(Plain(12, 4))(x).grad_fn).__name__


def test_frozen_weights_get_no_gradient():
    layer = nn.Linear(12, 4).requires_grad_(False)
    x = torch.randn(2, 12, requires_grad=True)
    gelu_then(layer, x).sum().backward()
    assert x.grad is not None and layer.weight.grad is None


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_stem_is_recomputed(dtype):
    torch.manual_seed(0)
    stem = SOFT('tiny', out_indices=(0, )).stem
    plain = nn.Sequential(*copy.deepcopy(stem))
    x = torch.randn(2, 3, 32, 48)
    for _ in range(2):
        for ours, theirs in zip(step(stem, stem, x, dtype),
                                step(plain, plain, x, dtype), strict=True):
            assert torch.equal(ours, theirs)
    for ours, theirs in zip(stem.buffers(), plain.buffers(), strict=True):
        assert torch.equal(ours, theirs)  # statistics, and that steps count once
    x.requires_grad_()
    # Of three maps, the second half as large in sum, each kept once instead of twice
    assert kept(plain, x) - kept(stem, x) > 0.45 * kept(plain, x)


@pytest.mark.parametrize('cls, cfg', [param for param in SHALLOW if param.id in (
    'SOFT', 'SwiftFormer-True', 'EcoFormerPVT')])
def test_training_step_is_the_same(cls, cfg, monkeypatch):
    steps = []
    for smallest, with_cp in ((2**40, False), (1, False), (1, True)):
        monkeypatch.setattr(recomputing, 'MIN_ENTRIES', smallest)
        model = build(cls, cfg, with_cp=with_cp).train()
        torch.manual_seed(0)  # of dropout
        outs = model(image(2, 64, 96))
        sum(out.square().mean() for out in outs).backward()
        steps.append([*outs, *(p.grad for p in model.parameters()), *model.buffers()])
    for kept, *others in zip(*steps, strict=True):
        for again in others:
            torch.testing.assert_close(again, kept, rtol=1e-4, atol=1e-6)
    for kept, *others in list(zip(*steps, strict=True))[:len(outs)]:
        assert all(torch.equal(kept, again) for again in others)
