"""LowFormer's published files, those with the TorchScript head, and timm's."""
import re
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

from mm_efficient.models.lowformer.backbone import LowFormer
from mm_efficient.weights.conversion import CheckpointError, convert_checkpoint

ROOT = Path(__file__).parents[3]
VARIANT = 'lowformer_b0'


def scripted(tensors):
    """Named as the head class for TorchScript names them."""
    return {re.sub(r'^head\.', 'head.opseq.', key): value
            for key, value in tensors.items()}


def timm_tensors(variant):
    torch.manual_seed(0)
    return timm.create_model(variant).state_dict()


@pytest.mark.parametrize('arch', LowFormer.ARCHS)
def test_every_variant_of_timm_is_recognised(arch):
    with torch.device('meta'):
        model = timm.create_model(f'lowformer_{arch}')
    tensors = {key: torch.zeros((), dtype=value.dtype).expand(value.shape)
               for key, value in model.state_dict().items()}
    conversion = convert_checkpoint(tensors)
    assert (conversion.family, conversion.arch) == ('LowFormer', arch)
    assert conversion.meta['mm_efficient']['layout'] == 'timm'
    count = sum(p.numel() for p in model.parameters())
    assert f'{count:,} parameters' in conversion.report


@pytest.mark.parametrize('make', [
    lambda published: published(VARIANT),
    lambda published: scripted(published(VARIANT)),
    lambda published: timm_tensors(VARIANT),
], ids=['published', 'scripted', 'timm'])
def test_loads_completely_into_the_config(make, published):
    tensors = make(published)
    conversion = convert_checkpoint(dict(state_dict=tensors))
    config = f'configs/cls/{VARIANT}_300e.py'
    assert config in conversion.report
    model = MODELS.build(Config.fromfile(str(ROOT / config)).model)
    model.load_state_dict(conversion.state_dict, strict=True)

    ours, theirs = (torch.cat([t.double().flatten() for t in state_dict.values()])
                    for state_dict in (model.state_dict(), tensors))
    assert ours.numel() == theirs.numel()
    for power in (1, 2):  # every value arrives once
        assert ours.pow(power).sum().item() == pytest.approx(
            theirs.pow(power).sum().item())


def test_scripted_head_is_the_published_one(published):
    tensors = published(VARIANT)
    conversion = convert_checkpoint(scripted(tensors))
    assert 'TorchScript' in conversion.report
    expected = convert_checkpoint(tensors).state_dict
    assert conversion.state_dict.keys() == expected.keys()
    assert all(value.equal(expected[key])
               for key, value in conversion.state_dict.items())


@pytest.mark.parametrize('rename, key', [
    (lambda name: name, 'backbone.stages.3.op_list.2.total.0.1.main.0.bias'),
    (scripted, 'head.opseq.op_list.2.norm.bias'),
    (None, 'stages.2.1.attn.main.1.conv_proj.norm.bias'),
])
def test_missing_tensors_are_named_as_in_the_file(rename, key, published):
    tensors = rename(published(VARIANT)) if rename else timm_tensors(VARIANT)
    del tensors[key]
    with pytest.raises(CheckpointError, match=f'1 missing: {re.escape(key)}'):
        convert_checkpoint(tensors)


def test_no_known_variant(published):
    tensors = {key: value for key, value in published(VARIANT).items()
               if not key.startswith('backbone.stages.3.op_list.4.')}
    with pytest.raises(CheckpointError, match=r'\(32, \(0, 0, 3, 3\), True, True\); '
                       r'published are b0 \(32, \(0, 0, 3, 4\)'):
        convert_checkpoint(tensors)
    width = 'backbone.stages.0.op_list.0.main.point_conv.conv.weight'
    tensors = published(VARIANT)
    del tensors[width]
    with pytest.raises(CheckpointError, match=r'MLP\) \(None, \(0, 0, 3, 4\)'):
        convert_checkpoint(tensors)


def test_another_number_of_classes(published):
    tensors = published(VARIANT)
    for leaf in ('weight', 'bias'):
        key = f'head.op_list.3.linear.{leaf}'
        tensors[key] = tensors[key][:10]
    conversion = convert_checkpoint(tensors)
    assert conversion.state_dict['head.fc.weight'].shape == (10, 1600)
    assert 'num_classes=10' in conversion.report


def test_the_unpublished_variant_is_told():
    with torch.device('meta'):
        model = timm.create_model('lowformer_b2')
    tensors = {key: torch.zeros((), dtype=value.dtype).expand(value.shape)
               for key, value in model.state_dict().items()}
    assert 'no results for b2' in convert_checkpoint(tensors).report
