"""EcoFormer against figures measured from the published code."""
import copy
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import load_state_dict
from mmpretrain.registry import MODELS
from torch import nn

from mm_efficient.models.ecoformer import kernel_hashing
from mm_efficient.models.ecoformer import layers as ecoformer_layers
from mm_efficient.models.ecoformer.backbone import EcoFormerPVT, EcoFormerTwins
from mm_efficient.weights.conversion import CheckpointError, convert_checkpoint

REFERENCE = Path(__file__).parents[2] / 'reference'
SYNTH = runpy.run_path(str(REFERENCE / 'synth.py'))
VARIANTS = sorted(path.stem for path in (REFERENCE / 'ecoformer').glob('*.json'))
ALL_STAGES = (0, 1, 2, 3)
TOLERANCE = 1e-9  # of the largest magnitude, in float64


def figures(variant):
    return json.loads((REFERENCE / 'ecoformer' / f'{variant}.json').read_text())


def published_weights(reference, seed=0):
    return SYNTH['synth_state_dict'](reference['state_dict'], seed,
                                     reference.get('synth_gain'))


def classifier_config(variant, arch, **options):
    body = 'PVT' if variant.startswith('pvt') else 'Twins'
    attention = 'softmax' if variant.endswith('msa') else 'hash'
    cls = dict(PVT=EcoFormerPVT, Twins=EcoFormerTwins)[body]
    return dict(
        type='ImageClassifier',
        backbone=dict(type=cls.__name__, arch=arch, attention=attention, **options),
        neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=1000,
                  in_channels=cls.ARCHS[arch]['embed_dims'][-1]))


def build(reference, seed=0, **options):
    """The classifier with converted weights, in float64."""
    conversion = convert_checkpoint(published_weights(reference, seed))
    assert conversion.arch == reference['variant'].split('_')[-2]
    model = MODELS.build(
        classifier_config(reference['variant'], conversion.arch, **options))
    load_state_dict(model, conversion.state_dict, strict=True)
    return model.double().eval()


def run(model, x):
    """Logits, and the output of every stage before any norm of the level."""
    stages = []
    handles = [stage.register_forward_hook(lambda *args: stages.append(args[-1]))
               for stage in model.backbone.stages]
    with torch.no_grad():
        logits = model(x)
    for handle in handles:
        handle.remove()
    return logits, stages


def error(out, expected):
    """Largest difference at the recorded places, over the largest magnitude."""
    assert list(out.shape) == expected['shape']
    sample = out.detach().double().reshape(-1)[expected['sample_index']].numpy()
    return np.abs(sample - expected['sample']).max() / expected['abs_max']


@pytest.mark.parametrize('variant', VARIANTS)
def test_matches_the_published_code(variant):
    reference = figures(variant)
    for case in reference['cases']:
        model = build(reference, case['seed'])
        batch, _, height, width = case['input']
        x = SYNTH['synth_image'](batch, height, width, case['seed']).double()
        logits, stages = run(model, x)
        expected = case['stages']
        if 'twins' in variant and (height % 32 or width % 32):
            # The published Twins drops the remainder of a grid, ours pads: they
            # coincide up to the first stage that has one.
            same = [stage for stage, e in zip(stages, expected)
                    if list(stage.shape) == e['shape']]
            assert 0 < len(same) < 4
            errors = list(map(error, same, expected))
        else:
            errors = [error(logits, case['logits']), *map(error, stages, expected)]
            if 'stage4_norm' in case:
                with torch.no_grad():
                    errors.append(error(model.backbone(x)[0], case['stage4_norm']))
        print(f'{variant} {case["input"]}: worst relative error {max(errors):.1e}')
        assert max(errors) < TOLERANCE


def test_twins_matches_where_it_drops_the_remainder(monkeypatch):
    """Without padding everything else is the same at any size, too."""
    reference = figures('twins_svt_s_ecoformer')
    case = next(c for c in reference['cases'] if c['input'][2] % 32)
    model = build(reference, case['seed'])
    for module in model.modules():
        if isinstance(module, ecoformer_layers.PatchEmbed):
            module.zeros = 0
    x = SYNTH['synth_image'](1, *case['input'][2:], case['seed']).double()
    logits, stages = run(model, x)
    assert error(logits, case['logits']) < TOLERANCE
    assert max(map(error, stages, case['stages'])) < TOLERANCE


@pytest.mark.parametrize('variant', ['pvtv2_b0_ecoformer', 'pvtv2_b0_msa'])
def test_matches_in_float32(variant, monkeypatch):
    """Given the codes of float64: where rounding flips a bit depends on the machine."""
    reference = figures(variant)
    case, model = reference['cases'][0], build(reference)
    x, codes, flipped, hash_codes = (
        SYNTH['synth_image'](2, 224, 224), [], [], kernel_hashing.hash_codes)

    def record(*args):
        codes.append(hash_codes(*args))
        return codes[-1]

    def replay(*args):
        own, wide = hash_codes(*args), codes.pop(0)
        flipped.append(float((own != wide).double().mean()))
        return wide.to(own.dtype)
    monkeypatch.setattr(kernel_hashing, 'hash_codes', record)
    run(model, x.double())
    monkeypatch.setattr(kernel_hashing, 'hash_codes', replay)
    logits, stages = run(model.float(), x)
    assert error(logits, case['logits']) < 2e-4
    assert max(map(error, stages, case['stages'])) < 2e-4
    assert not codes and max(flipped, default=0) < 1e-4
    assert len(flipped) == (6 if variant.endswith('ecoformer') else 0)


@pytest.mark.parametrize('variant', VARIANTS)
def test_number_of_parameters(variant):
    reference = figures(variant)
    with torch.device('meta'):
        model = MODELS.build(classifier_config(variant, variant.split('_')[-2]))
    for module, key in ((model, 'num_params'), (model.backbone, 'num_params_backbone')):
        assert sum(p.numel() for p in module.parameters()) == reference[key]


def our_module(backbone, name):
    """Published name of a block, an attention or a position encoding -> ours."""
    kind, *rest = name.split('.')
    if kind == 'pos_block':
        return backbone.stages[int(rest[0])].pos_conv
    stage = int(rest.pop(0)) if kind == 'blocks' else int(kind[-1]) - 1
    block = backbone.stages[stage].blocks[int(rest[0])]
    return block.attn if len(rest) > 1 else block


@pytest.mark.parametrize('variant', ['pvtv2_b0_ecoformer', 'twins_svt_s_ecoformer'])
def test_modules_match_the_published_code(variant, monkeypatch):
    reference = figures(variant)
    codes = []
    monkeypatch.setattr(
        kernel_hashing, 'hash_attention', lambda c, value, compute=(
            kernel_hashing.hash_attention): (codes.append(c), compute(c, value))[1])
    for case in reference['module_cases']:
        backbone = build(reference, case['seed']).backbone
        x = 5 * torch.from_numpy(SYNTH['synth_array'](
            'module_input', case['input'], seed=case['seed'])).double()
        with torch.no_grad():
            out = our_module(backbone, case['module'])(x.unflatten(1, case['grid']))
        out = out.reshape(case['input'])
        assert error(out, case['output']) < TOLERANCE, case['describe']
        if 'bits' in case:
            bits = codes[-1].transpose(0, 1)  # (B, H, N, b)
            assert list(bits.shape) == case['bits']['shape']
            values = case['bits']['values']  # the first ones
            assert bits.flatten()[:len(values)].tolist() == values
            assert bits.sum() == case['bits']['sum']


# ------------------------------------------------------------ EcoFormer's own options


def tiny(cls, **options):
    return cls(dict(embed_dims=[16, 16, 32, 32], num_heads=[1, 2, 2, 2],
                    depths=[1, 2, 1, 1], mlp_ratios=[2, 2, 2, 2]),
               **{'out_indices': ALL_STAGES, **options})


both_bodies = pytest.mark.parametrize('cls', [EcoFormerPVT, EcoFormerTwins])


@both_bodies
def test_wrong_options_are_explained(cls):
    with pytest.raises(ValueError, match="'hash' or 'softmax', got 'linear'"):
        tiny(cls, attention='linear')
    with pytest.raises(ValueError, match='multiples of num_heads'):
        cls(dict(embed_dims=[16, 16, 32, 32], num_heads=[1, 3, 2, 2],
                 depths=[1, 1, 1, 1], mlp_ratios=[2, 2, 2, 2]))


@both_bodies
def test_unfitted_model_refuses_to_run(cls):
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 96, 96), tiny(cls)
    assert not model.is_fitted
    for mode in (True, False):
        with pytest.raises(RuntimeError, match='not fitted.*HashFittingHook.*fit'):
            model.train(mode)(x)
    calls = []
    model.fit(x, max_tokens=40, progress=lambda: calls.append(1))
    assert len(calls) == model.num_hash_attentions == 4
    assert model.is_fitted and model(x)[0].std() > 0
    assert tiny(cls, attention='softmax').is_fitted


@both_bodies
def test_fitted_is_part_of_the_checkpoint(cls):
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 96, 96), tiny(cls).eval()
    unfitted = copy.deepcopy(model.state_dict())
    model.fit(x, max_tokens=40)
    other = tiny(cls).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert all(map(torch.equal, model(x), other(x)))
    other.load_state_dict(unfitted)
    with pytest.raises(RuntimeError, match='not fitted'):
        other(x)


def test_fitting_is_reproducible_and_leaves_no_trace():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 96, 64).double()
    model = tiny(EcoFormerPVT).double().train()
    start, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    buffers = []
    for images in (x, [x[:1], x[1:]]):
        model.load_state_dict(start)
        model.fit(images, max_tokens=400)
        buffers.append({key: b.clone() for key, b in model.named_buffers()})
    assert model.training and torch.equal(torch.get_rng_state(), random_state)
    for key, value in buffers[0].items():
        torch.testing.assert_close(buffers[1][key], value, rtol=1e-9, atol=1e-9)
    for key, value in model.named_parameters():
        assert torch.equal(value, start[key]) and value.grad is None
    model.fit(x, max_tokens=40, seed=1)
    assert not torch.equal(model.stages[0].blocks[0].attn.anchors,
                           buffers[0]['stages.0.blocks.0.attn.anchors'])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_fitting_in_half_precision(dtype):
    """Of converted models and under autocast; rounding may decide about a bit."""
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 96, 96), tiny(EcoFormerPVT)
    converted, autocast = copy.deepcopy(model).to(dtype), copy.deepcopy(model)
    model.fit(x, max_tokens=40)
    converted.fit(x.to(dtype), max_tokens=40)
    with torch.autocast('cpu', dtype):
        autocast.fit(x, max_tokens=40)
    for other in (converted, autocast):
        assert other.is_fitted
        first, expected = (m.stages[0].blocks[0].attn for m in (other, model))
        for name, tolerance in dict(
                anchors=0.02, kernel_mean=0.02, projection=0.1).items():
            torch.testing.assert_close(getattr(first, name).float(), getattr(
                expected, name), rtol=0, atol=tolerance)


def test_fitting_ignores_the_default_device():
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 96, 96), tiny(EcoFormerPVT)
    other = copy.deepcopy(model)
    model.fit(x, max_tokens=40)
    with torch.device('meta'):  # a GPU's would be refused: the generator is the CPU's
        other.fit(x, max_tokens=40)
    assert all(map(torch.equal, other.buffers(), model.buffers()))


def test_fitted_codes_tell_tokens_apart():
    torch.manual_seed(0)
    x, model = torch.randn(2, 3, 96, 96), tiny(EcoFormerPVT)
    model.fit(x, max_tokens=40)
    model.eval()
    attn = model.stages[0].blocks[0].attn
    with torch.no_grad():
        tokens = model.stages[0].blocks[0].norm1(model.stem(x).permute(0, 2, 3, 1))
        query = attn._split_heads(attn.qk(tokens))
        codes = ecoformer_layers.hash_codes(query, attn.anchors, attn.kernel_mean,
                                            attn.projection)
    shares = (codes > 0).float().mean((0, 1, 2))  # of every bit
    assert ((shares > 0.2) & (shares < 0.8)).float().mean() > 0.8


def test_too_few_tokens_to_fit_are_explained():
    with pytest.raises(ValueError, match='at least 25 tokens .*, got 16: .*larger'):
        tiny(EcoFormerPVT).fit(torch.randn(1, 3, 32, 32))


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_what_is_not_finite_is_not_fitted_to(value):
    model = EcoFormerPVT('b0').train()
    before = {key: buffer.clone() for key, buffer in model.named_buffers()}
    images = torch.rand(2, 3, 96, 96)
    images[1, 0, 40, 40] = value
    with pytest.raises(ValueError, match='NaN or infinity'):
        model.fit(images)
    assert model.training and not model.is_fitted
    for key, buffer in model.named_buffers():
        assert torch.equal(buffer, before[key]), key


@both_bodies
@pytest.mark.parametrize('load', ['strict', 'mmengine', 'pretrained'])
def test_softmax_weights_start_a_hash_model(cls, load, tmp_path):
    torch.manual_seed(0)
    source = tiny(cls, attention='softmax')
    source._init_from_scratch()
    weights = source.state_dict()
    model = tiny(cls)
    model.fit(torch.randn(2, 3, 96, 96), max_tokens=40)
    if load == 'strict':
        model.load_state_dict(weights)
    elif load == 'mmengine':
        wrapped = nn.Sequential(model)
        load_state_dict(wrapped, {f'0.{k}': v for k, v in weights.items()}, strict=True)
    else:
        torch.save(dict(state_dict={f'backbone.{k}': v for k, v in weights.items()}),
                   tmp_path / 'softmax.pth')
        model.init_cfg = dict(type='Pretrained',
                              checkpoint=str(tmp_path / 'softmax.pth'))
        model.init_weights()
    assert not model.is_fitted
    loaded = model.state_dict()
    queries, _, values = weights['stages.1.blocks.1.attn.qkv.weight'].chunk(3)
    assert torch.equal(loaded['stages.1.blocks.1.attn.qk.weight'], queries)
    assert torch.equal(loaded['stages.1.blocks.1.attn.v.weight'], values)
    same = [key for key in weights if key in loaded]
    assert 'stages.3.blocks.0.attn.qkv.weight' in same
    assert all(torch.equal(weights[key], loaded[key]) for key in same)


def test_hash_weights_do_not_fit_a_softmax_model():
    with pytest.raises(RuntimeError, match='qkv.weight'):
        tiny(EcoFormerPVT, attention='softmax').load_state_dict(
            tiny(EcoFormerPVT).state_dict())


def test_classifiers_weights_initialise_dense_twins(tmp_path):
    classifier = tiny(EcoFormerTwins, attention='softmax', out_indices=3)
    path = str(tmp_path / 'twins.pth')
    torch.save(dict(state_dict=classifier.state_dict()), path)
    for out_indices in (ALL_STAGES, (0, 1)):
        dense = tiny(EcoFormerTwins, attention='softmax', out_indices=out_indices,
                     init_cfg=dict(type='Pretrained', checkpoint=path))
        dense.init_weights()
        assert torch.equal(dense.stem.proj.weight, classifier.stem.proj.weight)
        for i in out_indices[:3]:
            norm = getattr(dense, f'norm{i}')
            assert (norm.weight == 1).all() and (norm.bias == 0).all()


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    model = EcoFormerPVT('b1')
    model.init_weights()
    mlp = model.stages[1].blocks[0].mlp
    assert mlp.fc1.weight.std().item() == pytest.approx(0.02, rel=0.03)
    # fan out: 3 * 3 * C / C for a depthwise convolution
    assert mlp.dwconv.weight.std().item() == pytest.approx((2 / 9)**0.5, rel=0.03)
    stem = model.stem.proj.weight
    assert stem.std().item() == pytest.approx((2 / (7 * 7 * 64))**0.5, rel=0.03)


# ----------------------------------------------------------------- timm as the oracle


def randomise(model):
    """A model whose every parameter matters."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        nn.init.normal_(parameter, float(parameter.detach().mean().round()), 0.1)
    return model.double().eval()


def assert_agrees(oracle, variant, arch, layout):
    conversion = convert_checkpoint(oracle.state_dict())
    assert conversion.arch == arch
    assert conversion.meta['mm_efficient']['layout'] == layout
    model = MODELS.build(classifier_config(variant, arch)).double().eval()
    load_state_dict(model, conversion.state_dict, strict=True)
    x = SYNTH['synth_image'](2, 96, 160).double()
    with torch.no_grad():
        torch.testing.assert_close(model(x), oracle(x), rtol=1e-9, atol=1e-9)


def test_softmax_pvt_agrees_with_timm():
    """timm's PVTv2 without spatial reduction is our softmax form."""
    pvt_v2 = pytest.importorskip('timm.models.pvt_v2')
    settings = EcoFormerPVT.ARCHS['b0']
    oracle = pvt_v2.PyramidVisionTransformerV2(sr_ratios=(1, 1, 1, 1), **settings)
    assert_agrees(randomise(oracle), 'pvtv2_b0_msa', 'b0', 'timm')


def test_softmax_twins_agrees_with_timm():
    """timm's Twins-SVT without windows and spatial reduction, too."""
    twins = pytest.importorskip('timm.models.twins')
    settings = EcoFormerTwins.ARCHS['s']
    oracle = twins.Twins(sr_ratios=(1, 1, 1, 1), **settings)
    assert_agrees(randomise(oracle), 'twins_svt_s_msa', 's', 'published')


@pytest.mark.parametrize('name, arch', [('pvt_v2_b0', 'b0'), ('pvt_v2_b3', 'b3'),
                                        ('twins_svt_small', 's')])
def test_imagenet_weights_start_the_softmax_form(name, arch):
    timm = pytest.importorskip('timm')
    weights = timm.create_model(name).state_dict()
    reduced = [key for key in weights if '.attn.sr.' in key or '.attn.norm.' in key]
    assert reduced
    conversion = convert_checkpoint(weights)
    assert conversion.arch == arch
    assert 'model.backbone.attention=softmax' in conversion.report
    assert all(f'dropped    {key}: spatial reduction' in conversion.report
               for key in reduced)
    # The last stage had full attention already
    prefix = 'stages.3.blocks.0' if arch != 's' else 'blocks.3.1'
    block = 0 if arch != 's' else 1
    expected = torch.cat([weights[f'{prefix}.attn.{part}.weight']
                          for part in ('q', 'kv')])
    assert torch.equal(
        conversion.state_dict[f'backbone.stages.3.blocks.{block}.attn.qkv.weight'],
        expected)


# ------------------------------------------------------------------------ conversion


def test_converter_tells_the_kinds_apart():
    reports = {variant: convert_checkpoint(published_weights(figures(variant))).report
               for variant in ('pvtv2_b0_ecoformer', 'pvtv2_b0_msa')}
    assert 'projection_matrix: random features' in reports['pvtv2_b0_ecoformer']
    assert 'attention=hash' in reports['pvtv2_b0_msa']
    assert 'attention=hash' not in reports['pvtv2_b0_ecoformer']


def test_converter_explains_what_it_cannot_use():
    weights = published_weights(figures('pvtv2_b0_ecoformer'))
    key = 'block2.1.attn.fast_attention.ksh.mvec'
    with pytest.raises(CheckpointError, match=f'1 missing: {key}'):
        convert_checkpoint({k: v for k, v in weights.items() if k != key})
    fewer = {k: v for k, v in weights.items() if not k.startswith('block3.1.')}
    with pytest.raises(CheckpointError, match=r'\(2, 2, 1, 2\), 32\);.*b4 \(\(3, 8'):
        convert_checkpoint(fewer)
    with pytest.raises(CheckpointError, match='1 unknown: block1.0.attn.extra'):
        convert_checkpoint({**weights, 'block1.0.attn.extra': torch.zeros(1)})
