"""SwiftFormer against figures measured from the published code, and against timm."""
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from mmengine.runner import load_state_dict
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn import functional as F

from mm_efficient.models.swiftformer.additive_attention import global_query
from mm_efficient.models.swiftformer.backbone import SwiftFormer
from mm_efficient.weights.conversion import convert_checkpoint

REFERENCE = Path(__file__).parents[2] / 'reference'
SYNTH = runpy.run_path(str(REFERENCE / 'synth.py'))
VARIANTS = sorted(path.stem for path in (REFERENCE / 'swiftformer').glob('*.json'))
TOLERANCE = 1e-9  # of the largest magnitude, in float64
ALL_STAGES = (0, 1, 2, 3)


def figures(variant):
    return json.loads((REFERENCE / 'swiftformer' / f'{variant}.json').read_text())


def build(state_dict, **options):
    """The classifier with converted weights, in float64."""
    conversion = convert_checkpoint(state_dict)
    width = SwiftFormer.ARCHS[conversion.arch]['embed_dims'][-1]
    model = MODELS.build(dict(
        type='ImageClassifier',
        backbone=dict(type='SwiftFormer', arch=conversion.arch, **options),
        head=dict(type='DistilledClsHead', in_channels=width, num_classes=1000)))
    load_state_dict(model, conversion.state_dict, strict=True)
    return model.double().eval()


def published(reference, seed=0):
    return SYNTH['synth_state_dict'](reference['state_dict'], seed)


def dense(model, arch, norms):
    """The same backbone with output norms."""
    backbone = SwiftFormer(arch, out_indices=ALL_STAGES, output_norm=True)
    state_dict = {f'output_norms.{int(key[4]) // 2}{key[5:]}': value
                  for key, value in norms.items()}
    load_state_dict(backbone, {**model.backbone.state_dict(), **state_dict},
                    strict=True)
    return backbone.double().eval()


def error(out, expected):
    """Largest difference at the recorded places, over the largest magnitude."""
    assert list(out.shape) == expected['shape']
    sample = out.detach().double().reshape(-1)[expected['sample_index']].numpy()
    return np.abs(sample - expected['sample']).max() / expected['abs_max']


@pytest.mark.parametrize('variant', VARIANTS)
def test_matches_the_published_code(variant):
    reference = figures(variant)
    arch = variant.removeprefix('swiftformer_')
    for case in reference['cases']:
        model = build(published(reference, case['seed']), out_indices=ALL_STAGES)
        norms = SYNTH['synth_state_dict'](
            reference['state_dict_fork_feat_extra'], case['seed'])
        batch, _, height, width = case['input']
        x = SYNTH['synth_image'](batch, height, width, case['seed']).double()
        with torch.no_grad():
            raw = model.backbone(x)
            normed = dense(model, arch, norms)(x)
            pooled = model.head.pre_logits(raw)
            errors = [
                error(model.backbone.stem(x), case['stem']),
                error(model.head.norm(raw[-1]), case['final_norm']),
                error(model(x), case['logits']),
                error(model.head.fc(pooled), case['logits_head']),
                error(model.head.fc_dist(pooled), case['logits_dist_head'])]
        errors += map(error, raw, case['stages_raw'])
        errors += map(error, normed, case['stages'])
        print(f'{variant} {case["input"]}: worst relative error {max(errors):.1e}')
        assert max(errors) < TOLERANCE


@pytest.mark.parametrize('memory_format', [torch.contiguous_format,
                                           torch.channels_last])
def test_matches_in_float32(memory_format):
    reference = figures('swiftformer_xs')
    model = build(published(reference)).float().to(memory_format=memory_format)
    x = SYNTH['synth_image'](2, 224, 224).to(memory_format=memory_format)
    with torch.no_grad():
        assert error(model(x), reference['cases'][0]['logits']) < 3e-6


@pytest.mark.parametrize('variant', VARIANTS)
def test_number_of_parameters(variant):
    reference = figures(variant)
    with torch.device('meta'):
        model = SwiftFormer(variant.removeprefix('swiftformer_'))
    count = sum(p.numel() for p in model.parameters())
    assert count == reference['num_params_backbone']


def test_modules_match_the_published_code():
    reference = figures('swiftformer_xs')
    backbone = build(published(reference)).backbone
    for case in reference['module_cases']:
        _, stage, block, *attention = case['module'].split('.')
        module = backbone.stages[int(stage) // 2].blocks[int(block)]
        x = torch.from_numpy(SYNTH['synth_array'](
            'module_input', case['input'], seed=case['seed'])).double()
        with torch.no_grad():
            if attention:  # recorded on tokens, (B, N, C)
                out = module.attn(x.transpose(1, 2)[..., None])
                out = out[..., 0].transpose(1, 2)
            else:
                out = module(x)
        assert error(out, case['output']) < TOLERANCE, case['describe']


@pytest.mark.parametrize('variant', VARIANTS)
def test_agrees_with_timm(variant):
    oracle = timm.create_model(variant)
    manifest = {key: (value.shape, str(value.dtype).removeprefix('torch.'))
                for key, value in oracle.state_dict().items()}
    oracle.load_state_dict(SYNTH['synth_state_dict'](manifest))
    oracle.double().eval()
    model = build(oracle.state_dict(), out_indices=ALL_STAGES)
    x = SYNTH['synth_image'](2, 100, 132).double()
    with torch.no_grad():
        _, expected = oracle.forward_intermediates(x)
        outs = model.backbone(x)
        torch.testing.assert_close(model(x), oracle(x), rtol=0, atol=1e-9)
    for out, reference in zip(outs, expected):
        torch.testing.assert_close(out, reference, rtol=0,
                                   atol=1e-9 * float(reference.abs().max()))


# ------------------------------------------------------------ SwiftFormer's own


def test_layouts_of_published_and_timm_weights_convert_alike():
    tensors = published(figures('swiftformer_xs'))
    oracle = timm.create_model('swiftformer_xs')
    converted = timm.models.swiftformer.checkpoint_filter_fn(tensors, oracle)
    ours, timms = map(convert_checkpoint, (tensors, converted))
    assert ours.meta['mm_efficient']['layout'] == 'published'
    assert timms.meta['mm_efficient']['layout'] == 'timm'
    assert all(torch.equal(value, timms.state_dict[key])
               for key, value in ours.state_dict.items())


def randomised(**options):
    """A backbone whose attention contributes, in contrast to a new one's."""
    torch.manual_seed(0)
    model = SwiftFormer('xs', out_indices=ALL_STAGES, **options)
    model._init_from_scratch()
    for name, parameter in model.named_parameters():
        if name.endswith('_scale'):
            nn.init.constant_(parameter, 1)
    return model.eval()


def test_new_output_norms_are_the_identity():
    x = SYNTH['synth_image'](1, 64, 96)
    with torch.no_grad():
        for raw, out in zip(randomised()(x), randomised(output_norm=True)(x)):
            torch.testing.assert_close(out, raw, rtol=1e-4, atol=0)


def test_output_norms_are_of_returned_levels_and_stay_trainable():
    model = SwiftFormer('xs', out_indices=(1, 3), output_norm=True, frozen_stages=2)
    assert list(model.output_norms) == ['1', '3']
    assert all(p.requires_grad for p in model.output_norms.parameters())
    assert model.train().output_norms['1'].training


def test_global_query_is_the_published_formula():
    torch.manual_seed(0)
    query, weight = torch.randn(2, 5, 7, 12).double(), torch.randn(12, 1).double()
    tokens = query.flatten(1, 2)  # (B, N, C)
    scores = F.normalize(tokens @ weight * 12**-0.5, dim=1)
    expected = (scores * tokens).sum(1)[:, None, None]
    out = global_query(query, weight)
    torch.testing.assert_close(out, expected)
    of_a_map = query.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    torch.testing.assert_close(global_query(of_a_map, 3 * weight), expected)
    torch.testing.assert_close(global_query(query, 0 * weight), 0 * out)


def test_pretrain_size_holds_the_global_query():
    """Of a texture repeated three times in both directions."""
    texture = torch.randn(1, 48, 7, 7, generator=torch.Generator().manual_seed(0))
    magnitudes = {}
    for size in (None, 224):
        attn = randomised(pretrain_size=size).stages[0].blocks[-1].attn
        for repeats in (8, 24):  # 56 x 56 is the grid at 224
            with torch.no_grad():
                qk = attn.qk(texture.repeat(1, 1, repeats, repeats))
                _, gated = attn._attend(qk.permute(0, 2, 3, 1))
            magnitudes[size, repeats] = float(gated.abs().max())
    assert magnitudes[None, 24] / magnitudes[None, 8] == pytest.approx(3, rel=1e-4)
    assert magnitudes[224, 24] == pytest.approx(magnitudes[224, 8], rel=1e-4)
    assert magnitudes[224, 8] == magnitudes[None, 8]


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_without_autocast(dtype):
    """The norms' bound 1e-12 is 0 in float16, and zero features are possible."""
    attn = randomised().stages[0].blocks[-1].attn
    nn.init.zeros_(attn.qk.bias)
    x = torch.zeros(1, 48, 6, 6)
    x[..., :3] = torch.randn(1, 48, 6, 3)
    with torch.no_grad():
        expected = attn(x)
        out = attn.to(dtype)(x.to(dtype))
    assert out.dtype == dtype and out.isfinite().all()
    torch.testing.assert_close(out.float(), expected, rtol=0.05,
                               atol=0.02 * float(expected.abs().max()))


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    model = SwiftFormer('l1', output_norm=True)
    model.init_weights()
    block = model.stages[2].blocks[-1]
    for conv in (block.local.dwconv, block.attn.qk, block.mlp.fc1, model.stem[3]):
        assert conv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not conv.bias.any()
    assert block.attn.score_weight.std().item() == pytest.approx(1, rel=0.15)
    assert torch.equal(block.local.layer_scale, torch.ones(192, 1, 1))
    for scale in (block.attn_scale, block.mlp_scale):
        assert torch.equal(scale, torch.full((192, 1, 1), 1e-5))


def test_drop_path_is_in_attention_blocks_only():
    model = SwiftFormer('xs', drop_path_rate=0.15)
    rates = [[block.drop_path.drop_prob if hasattr(block, 'drop_path') else None
              for block in stage.blocks] for stage in model.stages]
    assert [r[-1] for r in rates] == pytest.approx([0.02, 0.05, 0.11, 0.15])
    assert {rate for stage in rates for rate in stage[:-1]} == {None}
