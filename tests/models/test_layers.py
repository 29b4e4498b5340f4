"""What several families share."""
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mm_efficient.models.ecoformer import kernel_hashing
from mm_efficient.models.layers import ONEDNN_MIN_PIXELS, PointwiseConv
from mm_efficient.models.reduceformer.reduction_attention import reduction_attention
from mm_efficient.models.soft import gaussian_attention, newton_inverse
from mm_efficient.models.soft.area_pooling import area_pool
from mm_efficient.models.swiftformer.additive_attention import global_query, unit


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format,
                                           torch.channels_last])
@pytest.mark.parametrize('batch, height, width', [(1, 3, 5), (2, 16, 9)])
@pytest.mark.parametrize('bias', [True, False])
def test_pointwise_is_a_convolution(batch, height, width, memory_format, dtype, bias):
    assert (batch * height * width >= ONEDNN_MIN_PIXELS) == (batch == 2)
    torch.manual_seed(0)
    conv = PointwiseConv(6, 10, bias=bias).to(dtype)
    plain = nn.Conv2d(6, 10, 1, bias=bias).to(dtype)
    plain.load_state_dict(conv.state_dict())
    x = torch.randn(batch, 6, height, width, dtype=dtype)
    x = x.to(memory_format=memory_format)
    results = []
    for module in (conv, plain):
        given = x.clone().requires_grad_()
        out = module(given)
        out.square().sum().backward()
        results.append([out, given.grad, *(p.grad for p in module.parameters())])
    for ours, expected in zip(*results, strict=True):
        torch.testing.assert_close(ours, expected)


@pytest.mark.parametrize('height', [3, 30])
def test_pointwise_keeps_channels_last(height):
    x = torch.randn(1, 6, height, 7).to(memory_format=torch.channels_last)
    out = PointwiseConv(6, 10)(x)
    assert out.is_contiguous(memory_format=torch.channels_last)


def float32_operators(device='cpu'):
    """Calls of every operator that half precision would spoil, by name."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(device)
    query, value = random(2, 3, 100, 4), random(2, 3, 100, 4)
    marks, inverse = random(2, 3, 6, 4), random(2, 3, 6, 6)
    matrices = gaussian_attention.landmark_kernel(random(2, 3, 49, 16) / 2)
    tokens, images = random(2, 50, 3, 8), random(2, 16, 10, 12)
    anchors = F.normalize(random(3, 5, 8), dim=-1)
    mean, projection = random(3, 1, 5), random(3, 7, 5)
    codes = kernel_hashing.hash_codes(tokens, anchors, mean, projection)
    return {call.func.__name__: call for call in (
        partial(gaussian_attention.gaussian_attention, query, marks, value, inverse),
        partial(gaussian_attention.gaussian_kernel, query, marks),
        partial(gaussian_attention.landmark_kernel, marks),
        partial(newton_inverse.regularized_inverse, matrices),
        partial(newton_inverse.normalized_inverse, matrices),
        partial(newton_inverse.newton_iteration, matrices,
                torch.full((2, 1, 1, 1), 1e-3, device=device), 3),
        partial(kernel_hashing.anchor_kernel, tokens, anchors),
        partial(kernel_hashing.hash_codes, tokens, anchors, mean, projection),
        partial(kernel_hashing.hash_attention, codes, tokens),
        partial(reduction_attention, images, images, images, pretrain_tokens=49),
        partial(global_query, images, random(12, 1)))}


@pytest.mark.parametrize('name', float32_operators())
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_operators_keep_float32_under_autocast(name, dtype, monkeypatch):
    call = float32_operators()[name]
    for entries in (2**22, 60):  # SOFT's attention in one chunk and in several
        monkeypatch.setitem(gaussian_attention.CHUNK_ENTRIES, 'cpu', entries)
        expected = call()
        with torch.autocast('cpu', dtype):
            result = call()
        assert result.dtype == torch.float32 and torch.equal(result, expected)
    half = partial(call.func, *(arg.to(dtype) if isinstance(arg, torch.Tensor) else arg
                                for arg in call.args), **call.keywords)
    assert half().dtype == torch.float32


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('name', ['gaussian_attention', 'regularized_inverse',
                                  'normalized_inverse', 'newton_iteration'])
def test_gradients_keep_float32_under_autocast(name, dtype):
    """Where training calls ``loss.backward()`` inside the context, too."""
    call, grads = float32_operators()[name], []
    inputs = [x.requires_grad_() for x in call.args if isinstance(x, torch.Tensor)]
    for backward_inside in (False, True):
        # A loss of one product by element, which autocast leaves alone
        loss = call().square().sum()
        with torch.autocast('cpu', dtype, enabled=backward_inside):
            grads.append(torch.autograd.grad(loss, inputs))
    assert all(map(torch.equal, *grads))


def differentiable_operators():
    """Functions of float64 tensors, with their inputs, by name."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)
    marks, images = random(1, 2, 4, 3), random(2, 3, 2, 3)
    codes = random(3, 2, 5, 4).sign()

    def inverse_of(invert, scale):
        return lambda x: invert(gaussian_attention.landmark_kernel(scale * x)), [marks]
    return dict(
        gaussian_kernel=(gaussian_attention.gaussian_kernel,
                         [random(1, 2, 5, 3), marks]),
        landmark_kernel=(gaussian_attention.landmark_kernel, [marks]),
        # Its gradient is that of an inverse, where the iteration has converged
        regularized_inverse=inverse_of(newton_inverse.regularized_inverse, 2),
        normalized_inverse=inverse_of(newton_inverse.normalized_inverse, 1),
        area_pool=(lambda x: area_pool(x, 2, 2), [random(1, 3, 5, 2)]),
        hash_attention=(partial(kernel_hashing.hash_attention, codes),
                        [random(2, 5, 3, 4)]),
        reduction_attention=(reduction_attention, [*random(3, 2, 3, 4, 5)]),
        unit=(unit, [images]),
        global_query=(global_query, [images, random(3, 1)]))


@pytest.mark.parametrize('name', differentiable_operators())
def test_gradients_are_right_numerically(name):
    """The others have tests of their own; docs/reliability.md names them."""
    function, inputs = differentiable_operators()[name]
    assert torch.autograd.gradcheck(function, [x.requires_grad_() for x in inputs])
