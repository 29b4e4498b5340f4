"""What several families share."""
import pytest
import torch
from torch import nn

from mm_efficient.models.layers import ONEDNN_MIN_PIXELS, PointwiseConv


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
