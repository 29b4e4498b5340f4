"""Any published state dict -> ours: what every family relies on."""
import json
import re
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

from mm_efficient.weights.conversion import CheckpointError, convert_checkpoint

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / 'tests' / 'reference'
MANIFESTS = {path.stem: path for path in sorted(REFERENCE.glob('*/*_*.json'))}
# Names of EcoFormer's files begin with the body
BODIES = {'pvtv2': 'ecoformer', 'twins_svt': 'ecoformer'}


def build(config):
    model = Config.fromfile(str(ROOT / config)).model
    return MODELS.build(model)


@pytest.mark.parametrize('variant', MANIFESTS)
def test_every_published_variant_is_recognised(variant):
    manifest = json.loads(MANIFESTS[variant].read_text())
    tensors = {
        key: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape)
        for key, (shape, dtype) in manifest['state_dict'].items()
    }
    conversion = convert_checkpoint(tensors)
    arch = f'{conversion.family.lower()}_{conversion.arch}'
    expected = re.sub('_(norm|ecoformer|msa)$', '', variant)
    for body, family in BODIES.items():
        expected = expected.replace(body, family)
    assert arch == expected
    assert f'{manifest["num_params"]:,} parameters' in conversion.report


def test_every_published_value_arrives_once(published):
    tensors = published()
    converted = convert_checkpoint(tensors).state_dict

    def total(state_dict):
        values = [t.double() for t in state_dict.values()]
        return (sum(t.numel() for t in values),
                sum(t.sum().item() for t in values),
                sum(t.square().sum().item() for t in values))

    assert total(converted) == pytest.approx(total(tensors))
    ours = converted['backbone.stages.3.blocks.0.attn.qkv.weight']
    query, both = (tensors[f'block4.0.attn.{k}.weight'] for k in ('q', 'kv'))
    assert ours.equal(torch.cat([query, both]))


@pytest.mark.parametrize('variant, config', [
    ('soft_tiny', 'configs/cls/soft_tiny_300e.py'),
    ('soft_tiny', 'configs/cls/soft_tiny_norm_300e.py'),
    ('swiftformer_xs', 'configs/cls/swiftformer_xs_300e.py'),
])
def test_loads_completely_into_the_named_configs(variant, config, published):
    conversion = convert_checkpoint(dict(model=published(variant)))
    assert config in conversion.report
    model = build(config)
    model.load_state_dict(conversion.state_dict, strict=True)
    head = model.state_dict()['head.fc.weight']
    assert head.equal(published(variant)['head.weight'])


def test_arch_without_configs_of_its_own_is_explained(published):
    report = convert_checkpoint(published('soft_small_d20')).report
    assert 'configs/cls/soft_small_300e.py' in report
    assert 'arch=small_d20' in report


def test_another_number_of_classes(published):
    tensors = published()
    tensors['head.weight'] = tensors['head.weight'][:10]
    tensors['head.bias'] = tensors['head.bias'][:10]
    conversion = convert_checkpoint(tensors)
    assert conversion.state_dict['head.fc.weight'].shape == (10, 512)
    assert 'num_classes=10' in conversion.report


def test_averaged_weights_are_preferred(published):
    raw, averaged = published(seed=0), published(seed=1)
    checkpoint = dict(epoch=299, state_dict=raw, state_dict_ema=averaged,
                      optimizer=dict(state={0: dict(exp_avg=torch.ones(3))}))
    conversion = convert_checkpoint(checkpoint)
    bias = conversion.state_dict['head.fc.bias']
    assert bias.equal(averaged['head.bias'])
    assert not bias.equal(raw['head.bias'])
    assert conversion.meta['mm_efficient']['entry'] == 'state_dict_ema'
    assert 'state_dict_ema' in conversion.report


def test_missing_average_falls_back_to_the_weights(published):
    checkpoint = dict(state_dict=published(), state_dict_ema=None)
    conversion = convert_checkpoint(checkpoint)
    assert conversion.meta['mm_efficient']['entry'] == 'state_dict'


@pytest.mark.parametrize('wrapper', ['module.', 'module._orig_mod.'])
def test_wrappers_are_stripped(wrapper, published):
    tensors = published()
    wrapped = {wrapper + key: value for key, value in tensors.items()}
    converted = convert_checkpoint(dict(model=wrapped)).state_dict
    expected = convert_checkpoint(tensors).state_dict
    assert converted.keys() == expected.keys()
    assert all(converted[key].equal(expected[key]) for key in expected)


def test_types_are_kept_and_storage_is_not_shared(published):
    tensors = {key: value.half() if value.is_floating_point() else value
               for key, value in published().items()}
    big = torch.zeros(100, 512).half()
    big[50] = tensors['norm.weight']
    tensors['norm.weight'] = big[50]
    converted = convert_checkpoint(tensors).state_dict
    assert converted['backbone.norm.weight'].dtype == torch.float16
    assert converted['backbone.stem.1.num_batches_tracked'].dtype == torch.int64
    for value in converted.values():
        storage = value.untyped_storage().nbytes()
        assert storage == value.numel() * value.element_size()
    converted['backbone.norm.bias'].zero_()
    assert tensors['norm.bias'].any()


def drop(tensors):
    del tensors['block2.1.att.ff1.bias']


def add(tensors):
    tensors['block2.1.att.extra'] = torch.zeros(2)


def resize(tensors):
    tensors['pos_embed1'] = torch.zeros(1, 96 * 96, 64)


def spoil(tensors):
    tensors['block4.0.attn.kv.weight'][3, 4] = float('nan')


def mismatch(tensors):
    tensors['block4.0.attn.kv.weight'] = torch.zeros(1024, 300)


def count_in_floats(tensors):
    tensors['patch_embed2.proj.1.num_batches_tracked'] = torch.tensor(1.)


@pytest.mark.parametrize('fault, message', [
    (drop, r'1 missing: block2\.1\.att\.ff1\.bias'),
    (add, r'1 unknown: block2\.1\.att\.extra'),
    (resize, r'pos_embed1 \(expected \(1, 3136, 64\), got \(1, 9216, 64\)'),
    (spoil, r'block4\.0\.attn\.kv\.weight \(holds values that are not finite'),
    (mismatch, r'expected \(1536, 512\), got \(512, 512\) \+ \(1024, 300\)'),
    (count_in_floats, r'expected torch\.int64, got torch\.float32'),
])
def test_a_tensor_that_does_not_fit_is_named(fault, message, published):
    tensors = published()
    fault(tensors)
    with pytest.raises(CheckpointError, match=message) as error:
        convert_checkpoint(dict(state_dict_ema=tensors))
    assert 'SOFT tiny in state_dict_ema' in str(error.value)


def test_broken_average_is_not_replaced_silently(published):
    averaged = published()
    del averaged['norm.bias']
    with pytest.raises(CheckpointError, match='1 missing: norm.bias'):
        convert_checkpoint(
            dict(state_dict=published(), state_dict_ema=averaged))


def test_only_the_first_names_are_listed(published):
    tensors = {key: value for key, value in published().items()
               if '.att.norm' not in key}
    with pytest.raises(CheckpointError, match=r'24 missing: .*24 in all') as error:
        convert_checkpoint(tensors)
    assert len(re.findall(r'att\.norm', str(error.value))) == 10


def test_depths_of_no_variant(published):
    tensors = {key: value for key, value in published().items()
               if not key.startswith('block3.2.')}
    with pytest.raises(CheckpointError,
                       match=r'blocks per stage \(1, 2, 2, 2\);.*small_d20'):
        convert_checkpoint(tensors)


def test_our_own_checkpoints_are_told(published):
    conversion = convert_checkpoint(published())
    with pytest.raises(CheckpointError, match='already converted'):
        convert_checkpoint(conversion.checkpoint)
    with pytest.raises(CheckpointError, match='OpenMMLab classifier already'):
        convert_checkpoint(dict(state_dict=conversion.state_dict))
    with pytest.raises(CheckpointError, match='written by MMEngine'):
        convert_checkpoint(dict(meta=dict(mmengine_version='0.10.7'),
                                state_dict=conversion.state_dict))


@pytest.mark.parametrize('content, message', [
    (dict(epoch=3, args='text'), 'holds no tensors; its keys are epoch, args'),
    (torch.zeros(3), 'expected a dict of tensors.*got Tensor'),
    ([dict()], 'expected a dict of tensors.*got list'),
    (dict(model={'layer1.0.conv1.weight': torch.zeros(64, 64, 3, 3)}),
     r'of no known family \(known: .*SOFT.*layer1\.0\.conv1\.weight'),
])
def test_not_a_checkpoint_of_ours(content, message):
    with pytest.raises(CheckpointError, match=message):
        convert_checkpoint(content)
