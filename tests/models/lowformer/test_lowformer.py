"""LowFormer against figures measured from the published code, and against timm."""
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
from torch.utils.flop_counter import FlopCounterMode

from mm_efficient.models.lowformer.backbone import LowFormer
from mm_efficient.weights.conversion import convert_checkpoint

REFERENCE = Path(__file__).parents[2] / 'reference'
SYNTH = runpy.run_path(str(REFERENCE / 'synth.py'))
VARIANTS = sorted(path.stem for path in (REFERENCE / 'lowformer').glob('*.json'))
TOLERANCE = 1e-9  # of the largest magnitude, in float64


def figures(variant):
    return json.loads((REFERENCE / 'lowformer' / f'{variant}.json').read_text())


def published_weights(reference, seed=0):
    return SYNTH['synth_state_dict'](reference['state_dict'], seed)


def build(tensors, arch):
    """The classifier with converted weights, in float64, all levels returned."""
    conversion = convert_checkpoint(tensors)
    assert conversion.arch == arch
    width = LowFormer.ARCHS[arch]['embed_dims'][-1]
    hidden_dims = [conversion.state_dict[f'head.{name}.weight'].shape[0]
                   for name in ('conv.0', 'linear')]
    model = MODELS.build(dict(
        type='ImageClassifier',
        backbone=dict(type='LowFormer', arch=arch, out_indices=(0, 1, 2, 3)),
        head=dict(type='EfficientViTClsHead', in_channels=width,
                  hidden_dims=hidden_dims)))
    load_state_dict(model, conversion.state_dict, strict=True)
    return model.double().eval()


def error(out, expected):
    """Largest difference at the recorded places, over the largest magnitude."""
    assert list(out.shape) == expected['shape']
    sample = out.detach().double().reshape(-1)[expected['sample_index']].numpy()
    return np.abs(sample - expected['sample']).max() / expected['abs_max']


def worst_error(model, case):
    batch, _, height, width = case['input']
    x = SYNTH['synth_image'](batch, height, width, case['seed'])
    x = x.to(next(model.parameters()).dtype)
    with torch.no_grad():
        maps = model.backbone(x)
        outs = [model.head(maps), model.backbone.stem(x), *maps]
    return max(map(error, outs, [case['logits'], case['stem'], *case['stages']]))


@pytest.mark.parametrize('variant', VARIANTS)
def test_matches_the_published_code(variant):
    reference = figures(variant)
    for case in reference['cases']:
        model = build(published_weights(reference, case['seed']),
                      variant.removeprefix('lowformer_'))
        worst = worst_error(model, case)
        print(f'{variant} {case["input"]}: worst relative error {worst:.1e}')
        assert worst < TOLERANCE


def test_matches_in_float32():
    reference = figures('lowformer_b0')
    model = build(published_weights(reference), 'b0').float()
    assert worst_error(model, reference['cases'][0]) < 3e-6


@pytest.mark.parametrize('variant', VARIANTS)
def test_number_of_parameters(variant):
    with torch.device('meta'):
        model = LowFormer(variant.removeprefix('lowformer_'))
    count = sum(p.numel() for p in model.parameters())
    assert count == figures(variant)['num_params_backbone']


def test_modules_match_the_published_code():
    reference = figures('lowformer_b0')
    stages = build(published_weights(reference), 'b0').backbone.stages
    for case in reference['module_cases']:
        _, _, stage, _, block, *attention = case['module'].split('.')
        module = stages[int(stage)].blocks[int(block) - 1]
        module = module.attn.body[1] if attention else module
        x = torch.from_numpy(SYNTH['synth_array'](
            'module_input', case['input'], seed=case['seed'])).double()
        with torch.no_grad():
            assert error(module(x), case['output']) < TOLERANCE, case['describe']


@pytest.mark.parametrize('arch', LowFormer.ARCHS)
def test_agrees_with_timm(arch):
    torch.manual_seed(0)
    oracle = timm.create_model(f'lowformer_{arch}').eval()
    for name, tensor in oracle.state_dict().items():  # no zeros, no ones
        if tensor.is_floating_point():
            tensor.copy_(torch.from_numpy(SYNTH['synth_array'](name, tensor.shape)))
    model = build(oracle.state_dict(), arch)
    x = SYNTH['synth_image'](1, 75, 101).double()
    with torch.no_grad():
        logits, maps = oracle.double()(x), model.backbone(x)
        expected = oracle.forward_intermediates(x, intermediates_only=True)
        outs = [*maps, model.head(maps)]
    for out, reference in zip(outs, [*expected[-4:], logits], strict=True):
        assert (out - reference).abs().max() < TOLERANCE * reference.abs().max()


# -------------------------------------------------------------- LowFormer's own


def test_form_of_the_blocks():
    """Fused local convolutions below 256 channels; what the e variants lack."""
    with torch.device('meta'):
        models = {arch: LowFormer(arch) for arch in LowFormer.ARCHS}
    for arch, model in models.items():
        for stage in model.stages[2:]:
            for block in stage.blocks:
                fused = hasattr(block.local.body, 'spatial')
                assert fused == (block.local.body.project[0].out_channels < 256)
                expected = {'e1': ['local'], 'e2': ['local'], 'e3': ['attn', 'local']}
                names = [name for name, _ in block.named_children()]
                assert names == expected.get(arch, ['attn', 'mlp', 'local'])


def test_attention_alone_costs_more_per_pixel():
    """Softmax over h / 32 * w / 32 tokens is quadratic in them, the rest linear."""
    with torch.device('meta'):
        model = LowFormer('b0', out_indices=(0, 1, 2, 3)).eval()
    costs = []
    for height, width in ((224, 224), (800, 1344)):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model(torch.empty(1, 3, height, width, device='meta'))
        flops = counter.get_flop_counts()['Global']
        convolutions = flops.pop(torch.ops.aten.convolution)
        pixels = height * width
        costs.append([convolutions / pixels, sum(flops.values()) / pixels])
    (small, small_attention), (large, large_attention) = costs
    assert large == pytest.approx(small)
    assert large_attention / small_attention == pytest.approx(25 * 42 / 7**2, rel=0.01)
    assert large + large_attention < 1.1 * (small + small_attention)


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    model = LowFormer('b3')
    model.init_weights()
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            assert module.weight.abs().max() > 0.02
            if module.weight.numel() > 10000:
                assert module.weight.std().item() == pytest.approx(0.02, rel=0.05)
            assert module.bias is None or not module.bias.any()
    for stage in model.stages:  # only branches of convolutions begin as zero
        assert (stage.downsample.project[1].weight == 1).all()
    block = model.stages[2].blocks[0]
    assert not block.local.body.project[1].weight.any()
    assert not model.stages[1].blocks[0].body.project[1].weight.any()
    assert not model.stem[1].body.project[1].weight.any()
    norm, attn = block.attn.body
    assert (norm.weight == 1).all() and (attn.reduce[1].weight == 1).all()


def test_head_is_initialised_as_published():
    torch.manual_seed(0)
    head = MODELS.build(dict(type='EfficientViTClsHead', in_channels=64,
                             hidden_dims=(96, 128), num_classes=10))
    head.init_weights()
    for weight in (head.conv[0].weight, head.linear.weight, head.fc.weight):
        assert weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert head.linear.bias is None and not head.fc.bias.any()
