"""EcoFormer's energy model against the published figures."""
import functools
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from mm_efficient.analysis.energy import Operations, count_operations, energy
from mm_efficient.analysis.models import find_model

REFERENCE = Path(__file__).parents[1] / 'reference' / 'ecoformer'
FILES = dict(pvt_b0='pvtv2_b0', pvt_b1='pvtv2_b1', pvt_b2='pvtv2_b2', pvt_b3='pvtv2_b3',
             pvt_b4='pvtv2_b4', twins_s='twins_svt_s')
# Billions of multiplications and additions, billion pJ: softmax attention everywhere,
# by the published script
SOFTMAX = dict(pvt_b0=(2.02, 1.99, 9.25), pvt_b1=(5.02, 5.00, 23.07),
               pvt_b2=(8.64, 8.60, 39.71), pvt_b3=(11.86, 11.82, 54.53),
               pvt_b4=(15.97, 15.93, 73.43), twins_s=(5.96, 5.91, 27.36))


@functools.cache
def total(name, attention='hash'):
    spec = find_model(f'ecoformer_{name}', {'model.backbone.attention': attention})
    return sum(energy(spec).values(), Operations())


@pytest.mark.parametrize('name', FILES)
def test_published_script(name):
    path = REFERENCE / f'{FILES[name]}_ecoformer.json'
    expected = json.loads(path.read_text())['energy_measured']
    counted = total(name)
    assert (counted.mul, counted.add) == (expected['mul'], expected['add'])
    assert counted.picojoule == pytest.approx(expected['energy_pj'])


@pytest.mark.parametrize('name', FILES)
def test_published_table(name):
    """To the table's digits, which it cuts or rounds.

    The additions of B3 are the exception: 6.72 G, the table has 6.75, but the table's
    energy needs 6.72.
    """
    path = REFERENCE / f'{FILES[name]}_ecoformer.json'
    published = json.loads(path.read_text())['published']
    counted = total(name)
    assert counted.mul / 1e9 == pytest.approx(published['mul_g'], abs=0.01)
    additions = 6.72 if name == 'pvt_b3' else published['add_g']
    assert counted.add / 1e9 == pytest.approx(additions, abs=0.01)
    assert counted.picojoule / 1e9 == pytest.approx(published['energy_bpj'], abs=0.05)


@pytest.mark.parametrize('name', SOFTMAX)
def test_softmax_models(name):
    counted = total(name, 'softmax')
    assert (counted.mul / 1e9, counted.add / 1e9, counted.picojoule / 1e9
            ) == pytest.approx(SOFTMAX[name], abs=0.005)


class Net(nn.Module):
    """One layer of every kind, and attention."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.qkv = nn.Linear(8, 24)
        self.norm = nn.LayerNorm(8, elementwise_affine=False)

    def forward(self, x):
        x = self.bn(self.depthwise(self.conv(x))).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        return (q @ k.transpose(1, 2)).softmax(-1) @ v


@pytest.mark.parametrize('device', ['cpu', 'meta'])
def test_parts(device):
    n = 5 * 6
    net, x = Net().to(device), torch.ones(1, 3, 5, 6, device=device)
    parts = count_operations(net, x)
    conv = n * (3 * 8 * 9 + 8) + n * 8 * 9
    assert parts == {
        'convolutions': Operations(conv, conv),
        'linear layers': Operations(n * 8 * 24, n * 8 * 24),
        'norms': Operations(2 * n * 8, 2 * n * 8),
        'matmuls': Operations(2 * n * n * 8 + n * n, 2 * n * n * 8),
        'hashing attention': Operations(),
    }
    assert not net.conv._forward_hooks


def test_fused_attention_is_the_same_work():
    class Fused(Net):
        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return nn.functional.scaled_dot_product_attention(q, k, v)

    counts = []
    for device in ('cpu', 'meta'):
        x = torch.ones(1, 2, 7, 8, device=device)
        counts.append(count_operations(Fused().to(device), x))
    assert counts[0] == counts[1]
    assert counts[0]['matmuls'] == Operations(2 * 2 * 49 * 8 + 2 * 49, 2 * 2 * 49 * 8)
