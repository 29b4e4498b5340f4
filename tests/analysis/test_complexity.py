"""Counts against formulas, and against the reference figures of every variant."""
import json
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mm_efficient.analysis.complexity import Forward, call_model, count, count_bytes
from mm_efficient.analysis.models import (
    ModelSpec,
    complexity,
    find_model,
    run_without_data,
)
from mm_efficient.errors import ExecutionError, InputError
from mm_efficient.models.base import fit_where_needed
from mm_efficient.models.ecoformer.layers import NUM_ANCHORS, NUM_BITS, HashAttention
from mm_efficient.models.soft.attention import HEAD_DIMS, SOFTAttention
from mm_efficient.models.swiftformer.backbone import SwiftFormer

REFERENCE = Path(__file__).parents[1] / 'reference'


def of(function, *shapes, device='meta'):
    """MACs and activations of a function of tensors."""
    tensors = [torch.ones(shape, device=device) for shape in shapes]
    cost = count(nn.Identity(), tensors[0],
                 lambda model, x: function(x, *tensors[1:]))
    return cost.macs, cost.activations


@pytest.mark.parametrize('device', ['cpu', 'meta'])
@pytest.mark.parametrize('function, shapes, expected', [
    (lambda x, w: F.conv2d(x, w, stride=2, padding=1, groups=3),
     [(2, 6, 9, 9), (12, 2, 3, 3)], (2 * 12 * 25 * 2 * 9, 2 * 12 * 25)),
    (lambda x, w: F.conv_transpose2d(x, w, stride=2), [(1, 6, 5, 5), (6, 4, 2, 2)],
     (6 * 4 * 25 * 4, 4 * 100)),
    (F.linear, [(2, 7, 3), (5, 3), (5, )], (2 * 7 * 3 * 5, 2 * 7 * 5)),
    (torch.matmul, [(2, 3, 4, 5), (5, 6)], (2 * 3 * 4 * 5 * 6, 2 * 3 * 4 * 6)),
    (torch.matmul, [(4, 5), (5, )], (20, 4)),
    (lambda a, b: torch.einsum('bnhd,bmhd->bhnm', a, b), [(2, 3, 4, 5), (2, 7, 4, 5)],
     (2 * 4 * 3 * 7 * 5, 2 * 4 * 3 * 7)),
    (F.scaled_dot_product_attention, [(2, 3, 5, 8), (2, 3, 7, 8), (2, 3, 7, 8)],
     (2 * 2 * 3 * 5 * 7 * 8, 2 * 3 * 5 * (7 + 8))),
])
def test_operators(function, shapes, expected, device):
    assert of(function, *shapes, device=device) == expected


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_attention_layer(device):
    layer = nn.MultiheadAttention(8, 2, batch_first=True, device=device)
    x = torch.ones(1, 5, 8, device=device)
    cost = count(layer, x, lambda layer, x: layer(x, x, x))
    assert cost.macs == 4 * 5 * 8 * 8 + 2 * 5 * 5 * 8
    assert torch.backends.mha.get_fastpath_enabled()


class Net(nn.Module):
    """A layer in a list, called twice, one called by a method, and a product."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(3, 3, 1, bias=False)])
        self.neck = nn.Sequential(nn.Conv2d(3, 2, 1))
        self.frozen = nn.BatchNorm2d(2).requires_grad_(False)

    def forward(self, x):
        x = self.layers[0](self.layers[0](x))
        x = self.frozen(self.neck.forward(x)).flatten(2)
        return x @ x.transpose(1, 2)


class Layers(nn.Module):
    """A linear layer, fused attention, and a product with a matrix for all images."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 8, bias=False)
        self.matrix = nn.Parameter(torch.zeros(1, 5, 5))

    def forward(self, x):
        x = self.linear(x.flatten(2).transpose(1, 2)).relu()  # (2, 5, 8)
        x = F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0]
        return torch.bmm(self.matrix.expand(2, 5, 5), x)


@pytest.mark.parametrize('dtype, width', [(None, 4), (torch.bfloat16, 2)])
def test_bytes(dtype, width):
    """Neither activations count nor what autocast reads, to copy weights."""
    elements = {'linear': 2 * 5 * (3 + 8) + 3 * 8, 'attention': 4 * 2 * 5 * 8,
                # Autocast copies the expanded matrix
                'product': 5 * 5 * (2 if dtype else 1) + 2 * 2 * 5 * 8}
    x = torch.zeros(2, 3, 5, 1)
    model = Forward(Layers(), call_model, dtype).eval().requires_grad_(False)
    assert count_bytes(model, x) == width * sum(elements.values())


def test_modules():
    net = Net().train()
    net.frozen.eval()
    cost = count(net, torch.ones(1, 3, 4, 4))
    pixels = 16
    twice, neck = 2 * 9 * pixels, 6 * pixels
    assert {name: part.macs for name, part in cost.modules.items()} == {
        'layers': twice, 'layers.0': twice, 'neck': neck, 'neck.0': neck, 'frozen': 0}
    assert cost.macs == twice + neck + 2 * 2 * pixels
    assert cost.flops == 2 * cost.macs
    assert cost.parameters == 9 + 8 + 4 and cost.modules['neck'].parameters == 8
    assert net.training and net.layers[0].training and not net.frozen.training


def test_what_has_no_formula_is_named():
    def invert(x):
        return torch.linalg.inv(x @ x)
    cost = count(nn.Identity(), torch.eye(3), lambda model, x: invert(x))
    assert cost.macs == 27
    assert cost.uncounted == {'aten::linalg_inv_ex': 1}


# ---------------------------------------------------------------- published figures


def variants():
    """Name and reference file of every variant.

    SOFT-Norm's published number depends on the data.
    """
    found = []
    for path in sorted(REFERENCE.glob('[!m]*/*.json')):
        if not path.stem.endswith(('_msa', '_norm')) and '_d20' not in path.stem:
            name = path.stem.replace('pvtv2', 'pvt').replace('twins_svt', 'twins')
            if name.endswith('_ecoformer'):
                name = 'ecoformer_' + name.removesuffix('_ecoformer')
            found.append(pytest.param(name, path, id=name))
    return found


def published_extra(backbone):
    """MACs of the published code at 224 x 224 that ours computes in another way."""
    total = 0
    for n, channels, stage in zip((56**2, 28**2, 14**2, 7**2),
                                  backbone.feature_channels, backbone.stages):
        for block in stage.blocks:
            attn = getattr(block, 'attn', None)
            if isinstance(attn, HashAttention):
                # Distances to anchors as squared differences; ours are a product.
                # Kernel values are centred; we centre their projections instead
                total -= n * NUM_ANCHORS * channels
                total -= attn.num_heads * NUM_ANCHORS * NUM_BITS
            elif isinstance(attn, SOFTAttention):
                # (K M) (K^T v) for our K (M (K^T v)), and all squared norms in
                # distances by products with ones; ours by two more channels
                m, d = 7 * 7, HEAD_DIMS
                total += attn.num_heads * m * (2 * n * d - 2 * n + m * d + n * m)
        if isinstance(backbone, SwiftFormer):
            total -= n * channels  # weighted sum of queries; ours is a product
    return total


@pytest.mark.parametrize('name, path', variants())
def test_reference_figures(name, path):
    reference = json.loads(path.read_text())
    spec = find_model(name)
    backbone, cost = run_without_data(
        spec, reference['macs_input'][2:],
        lambda model, x: (model.backbone, count(model, x, spec.run)))
    assert cost.parameters == reference['num_params']
    assert cost.modules['backbone'].parameters == reference['num_params_backbone']
    assert not cost.uncounted
    assert cost.macs + published_extra(backbone) == reference['macs_measured']


# -------------------------------------------------------------------- whole models


@pytest.mark.parametrize('name', ['soft_tiny', 'swiftformer_xs', 'ecoformer_pvt_b0'])
def test_meta_device_counts_what_a_cpu_does(name):
    spec = find_model(name)
    model, x = spec.build(), torch.randn(1, 3, 96, 128)
    if hasattr(model.backbone, 'fit'):
        fit_where_needed(model, torch.randn(2, 3, 96, 96))
    on_cpu, on_meta = count(model, x, spec.run), complexity(spec, (96, 128))
    assert on_cpu.macs == on_meta.macs
    assert on_cpu.activations == on_meta.activations


def test_detector():
    cost = complexity(find_model('swiftformer_xs_maskrcnn_1x'), (320, 256))
    parts = {name: part for name, part in cost.modules.items() if '.' not in name}
    assert cost.macs == sum(part.macs for part in parts.values())
    box = 1000 * (7 * 7 * 256 * 1024 + 1024 * 1024 + 1024 * (81 + 80 * 4))
    assert parts['roi_head'].macs == box + cost.modules['roi_head.mask_head'].macs
    mask = 4 * 14**2 * 9 * 256**2 + 14**2 * 4 * 256**2 + 28**2 * 256 * 80
    assert cost.modules['roi_head.mask_head'].macs == 100 * mask
    # 3 anchors with a score and a box on five levels, behind one convolution
    pixels = sum(math.ceil(320 / s) * math.ceil(256 / s) for s in (4, 8, 16, 32, 64))
    assert parts['rpn_head'].macs == pixels * 256 * (9 * 256 + 3 * 5)


def test_segmentor():
    spec = find_model('swiftformer_xs_upernet_160k')
    assert spec.shape == (512, 512)
    cost = complexity(spec, (64, 96))
    auxiliary = cost.modules['auxiliary_head']
    assert auxiliary.parameters and not auxiliary.macs  # for training alone
    assert cost.macs == (cost.modules['backbone'].macs
                         + cost.modules['decode_head'].macs)


@pytest.mark.parametrize('name, parameters, gmacs', [
    ('resnet50', 25557032, 4.09),  # timm; published 25.6 M, 4.1 G
    ('timm/swin_tiny_patch4_window7_224', 28288354, 4.49),  # 28.3 M, 4.5 G
    ('resnet50_8xb32_in1k', 25557032, 4.09),  # MMPretrain
])
def test_other_models(name, parameters, gmacs):
    cost = complexity(find_model(name))
    assert cost.parameters == parameters
    assert cost.macs / 1e9 == pytest.approx(gmacs, abs=0.01)


class LooksAtValues(nn.Module):
    """Cannot be built nor run on the meta device."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, int(torch.ones(4).sum()), 1)

    def forward(self, x):
        return self.conv(x) if x.sum() != 0 else x


def test_model_that_looks_at_values():
    cost = complexity(ModelSpec('looks', LooksAtValues, lambda m, x: m(x), (8, 8)))
    assert cost.macs == 8 * 8 * 3 * 4


def test_model_that_cannot_be_run():
    broken = ModelSpec('broken', lambda: nn.Linear(5, 5), lambda m, x: m(x), (8, 8))
    with pytest.raises(ExecutionError, match='broken cannot be run on an image of 8 x'):
        complexity(broken)


def test_unknown_name_names_similar():
    with pytest.raises(InputError, match="'soft_smal'.*soft_small"):
        find_model('soft_smal')
    with pytest.raises(InputError, match='does not exist'):
        find_model('configs/nothing.py')
