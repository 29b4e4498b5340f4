"""Maps of attention have to give what the module computes with them."""
import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mm_efficient.errors import InputError
from mm_efficient.models.base import fit_where_needed
from mm_efficient.models.ecoformer.backbone import EcoFormerPVT
from mm_efficient.models.lowformer.backbone import LowFormer
from mm_efficient.models.reduceformer.backbone import ReduceFormer
from mm_efficient.models.soft.backbone import SOFT
from mm_efficient.models.swiftformer.additive_attention import global_query
from mm_efficient.models.swiftformer.backbone import SwiftFormer
from mm_efficient.visualization.attention import (
    attention_layers,
    attention_maps,
    draw_attention,
)

PIXEL = (70, 121)  # row and column, in images of 96 x 130
ECO = dict(embed_dims=[8, 16, 40, 64], num_heads=[1, 2, 5, 8], depths=[1] * 4,
           mlp_ratios=[1] * 4)
LOW = dict(embed_dims=[8, 16, 128, 128], depths=[0, 0, 1, 1], stem_dims=8, stem_depth=0,
           down_ratio=4, attention=True, mlp=True)


def small(family, **settings):
    """A small model of a family in float64, fitted, with weights that matter."""
    torch.manual_seed(0)
    model = family(**settings, out_indices=(0, 1, 2, 3)).double().eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.5)
    fit_where_needed(model, torch.randn(2, 3, 96, 96, dtype=torch.float64))
    return model


@pytest.fixture(scope='module')
def ecoformer():
    """Fitting takes seconds; no test may change the model."""
    return small(EcoFormerPVT, arch=ECO)


def look(model):
    """Maps and modules of every attention, and what these take, project and give."""
    x = torch.randn(1, 3, 96, 130, dtype=torch.float64)
    inputs, outputs = {}, {}
    layers = attention_layers(model)
    for name, attn in layers.items():
        def record(module, args, output, name=name):
            inputs[name], outputs[name] = args[0], output

        def record_projected(module, args, name=name):
            inputs[f'{name}.proj'] = args[0]

        attn.register_forward_hook(record)
        attn.proj.register_forward_pre_hook(record_projected)
    maps = attention_maps(model, x, PIXEL, list(layers))
    assert list(maps) == list(layers)
    return maps, layers, inputs, outputs


def token(name):
    stride = 4 * 2**int(name.split('.')[1])
    return PIXEL[0] // stride, PIXEL[1] // stride


@pytest.mark.parametrize('normalized', [False, True])
@pytest.mark.parametrize('pretrain_size', [None, 64])
def test_soft(normalized, pretrain_size):
    model = small(SOFT, arch=dict(embed_dims=[32, 64, 32, 64], depths=[1] * 4),
                  normalized=normalized, pretrain_size=pretrain_size)
    maps, layers, inputs, outputs = look(model)
    for name in list(layers)[:3]:
        attn, (row, kernel) = layers[name], maps[name]
        y, x = token(name)
        value = attn.v(inputs[name])
        heads = value[0].unflatten(-1, (attn.num_heads, -1))  # (h, w, heads, d)
        mixed = torch.einsum('khw,hwkd->kd', row.values, heads).flatten()
        local = attn._convolve(value)[0, y, x]
        torch.testing.assert_close(attn.proj(mixed + local), outputs[name][0, y, x])
        assert kernel.values.min() >= 0 and kernel.values.max() <= 1
        stride = 4 * 2**int(name.split('.')[1])
        rows, columns = kernel.values.shape[1:]
        if pretrain_size is None:
            # The landmarks cover whole r x r groups of tokens only
            assert kernel.extent == tuple(n * attn.landmark_conv.stride[0] * stride
                                          for n in (rows, columns))
        else:
            assert (rows, columns) == (2, 2)
    of_token, of_class = maps[list(layers)[3]]
    check_softmax(layers[name := list(layers)[3]], of_token, inputs[name][0],
                  outputs[name][0, 1 + token(name)[0] * 5 + token(name)[1]])
    check_softmax(layers[name], of_class, inputs[name][0], outputs[name][0, 0])


def check_softmax(attn, each, tokens, output):
    """Rows, without the class token's column if there is a class token."""
    rows = each.values.flatten(1)
    value = attn.qkv(tokens)[..., -attn.embed_dims:].unflatten(-1, (attn.num_heads, -1))
    if len(tokens) > rows.shape[1]:
        rows = torch.cat([1 - rows.sum(1, keepdim=True), rows], 1)
    torch.testing.assert_close(rows.sum(1), torch.ones_like(rows[:, 0]))
    mixed = torch.einsum('kn,nkd->kd', rows, value).flatten()
    torch.testing.assert_close(attn.proj(mixed), output)


def test_ecoformer(ecoformer):
    maps, layers, inputs, outputs = look(copy.deepcopy(ecoformer))
    for name in list(layers)[:3]:
        attn, (each, ) = layers[name], maps[name]
        y, x = token(name)
        assert (each.values[:, y, x] == 1).all() and each.values.min() >= -1
        products, bias = 16 * each.values.flatten(1), 17  # of 16 bits
        index = y * each.values.shape[2] + x
        weights = products + bias * F.one_hot(torch.tensor(index), products.shape[1])
        weights = weights / (products + bias).sum(1, keepdim=True)
        value = attn.v(inputs[name])[0].flatten(0, 1).unflatten(
            -1, (attn.num_heads, -1))
        mixed = torch.einsum('kn,nkd->kd', weights, value).flatten()
        torch.testing.assert_close(attn.proj(mixed), outputs[name][0, y, x])
    name = list(layers)[3]
    check_softmax(layers[name], maps[name][0], inputs[name][0].flatten(0, 1),
                  outputs[name][0][token(name)])


def test_swiftformer():
    maps, layers, inputs, _ = look(small(
        SwiftFormer, arch=dict(embed_dims=[8, 8, 16, 16], depths=[1] * 4)))
    for name, attn in layers.items():
        each, = maps[name]
        query = F.normalize(attn.qk(inputs[name])[0].chunk(2)[0], dim=0)
        expected = global_query(query.permute(1, 2, 0)[None], attn.score_weight)
        torch.testing.assert_close(torch.einsum('hw,chw->c', each.values[0], query),
                                   expected.flatten())
        torch.testing.assert_close(each.values.square().sum().item(), 1.)
        assert not each.by_token


def test_lowformer():
    maps, layers, inputs, _ = look(small(LowFormer, arch=LOW))
    for name, attn in layers.items():
        each, = maps[name]
        assert each.values.shape[1:] == (3, 5) and each.extent == (96, 160)
        qkv = attn.qkv(attn.reduce(inputs[name]))[0].unflatten(
            0, (attn.num_heads, 3, -1))
        mixed = torch.einsum('khw,kdhw->kd', each.values, qkv[:, 2]).flatten()
        y, x = PIXEL[0] // 32, PIXEL[1] // 32
        torch.testing.assert_close(mixed, inputs[f'{name}.proj'][0, :, y, x])


def test_reduceformer():
    maps, layers, inputs, _ = look(small(ReduceFormer, arch=dict(
        embed_dims=[8, 8, 16, 16], depths=[1] * 4, stem_dims=8, stem_depth=1)))
    for name, attn in layers.items():
        each, = maps[name]
        torch.testing.assert_close(each.values.sum(0), torch.ones_like(each.summary))
        qkv = attn.qkv(inputs[name])
        _, key, value = (torch.cat(pair, 1)[0] for pair in zip(
            qkv.chunk(3, 1), attn.local(qkv).chunk(3, 1)))
        factor = key.relu().sum((1, 2)) * value.sum((1, 2))
        torch.testing.assert_close(each.values * factor[:, None, None],
                                   inputs[f'{name}.proj'][0])
        weight = factor.abs() / factor.abs().sum()
        torch.testing.assert_close(
            each.summary, torch.einsum('chw,c->hw', each.values, weight))
        assert sorted(each.order) == list(range(len(each.values)))


def test_model_without_attention():
    model = LowFormer({**LOW, 'attention': False})
    with pytest.raises(InputError, match='no attention'):
        attention_layers(model)


def test_hooks_are_taken_off_and_figure_is_complete(ecoformer):
    model = copy.deepcopy(ecoformer)
    layers = list(attention_layers(model))
    maps = attention_maps(model, torch.randn(1, 3, 96, 130, dtype=torch.float64), PIXEL,
                          layers)
    assert not any(m._forward_pre_hooks for m in model.modules())
    image = np.zeros((96, 130, 3), np.uint8)
    figure = draw_attention(image, maps, PIXEL, num_heads=2)
    titles = [axes.get_title() for axes in figure.axes]
    assert len(titles) == 4 * 4 and titles[0].startswith('stage 1, block 1')
    # A single head is shown once, in the place of the mean
    assert titles[1].startswith('the only head') and titles[2] == ''
    assert titles[6].startswith('head 0') and '-' in titles[6]
    corner = figure.axes[4].patches[0].get_xy()  # of the token of stage 2
    assert corner == (120, 64)
