"""ReduceFormer against figures measured from the published code."""
import copy
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.runner import load_state_dict
from mmpretrain.registry import MODELS

from mm_efficient.models.reduceformer.backbone import ReduceFormer
from mm_efficient.weights.conversion import CheckpointError, convert_checkpoint

REFERENCE = Path(__file__).parents[2] / 'reference'
SYNTH = runpy.run_path(str(REFERENCE / 'synth.py'))
VARIANTS = sorted(path.stem for path in (REFERENCE / 'reduceformer').glob('*.json'))
TOLERANCE = 1e-9  # of the largest magnitude, in float64


def figures(variant):
    return json.loads((REFERENCE / 'reduceformer' / f'{variant}.json').read_text())


def build(reference, seed=0, gain=None, **options):
    """The classifier with converted weights, in float64, all levels returned."""
    conversion = convert_checkpoint(
        SYNTH['synth_state_dict'](reference['state_dict'], seed, gain))
    arch = conversion.arch
    assert reference['variant'] == f'reduceformer_{arch}'
    hidden_dims = [conversion.state_dict[f'head.{name}.weight'].shape[0]
                   for name in ('conv.0', 'linear')]
    model = MODELS.build(dict(
        type='ImageClassifier',
        backbone=dict(type='ReduceFormer', arch=arch, out_indices=(0, 1, 2, 3),
                      **options),
        head=dict(type='EfficientViTClsHead',
                  in_channels=ReduceFormer.ARCHS[arch]['embed_dims'][-1],
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
        worst = worst_error(
            build(reference, case['seed'], reference['synth_gain']), case)
        print(f'{variant} {case["input"]}: worst relative error {worst:.1e}')
        assert worst < TOLERANCE


def test_matches_in_float32():
    reference = figures('reduceformer_b1')
    model = build(reference, gain=reference['synth_gain']).float()
    assert worst_error(model, reference['cases'][0]) < 3e-6


@pytest.mark.parametrize('variant', VARIANTS)
def test_number_of_parameters(variant):
    with torch.device('meta'):
        model = ReduceFormer(variant.removeprefix('reduceformer_'))
    count = sum(p.numel() for p in model.parameters())
    assert count == figures(variant)['num_params_backbone']


def test_modules_match_the_published_code():
    reference = figures('reduceformer_b1')
    stages = build(reference).backbone.stages
    for case in reference['module_cases']:
        _, _, stage, _, block, *attention = case['module'].split('.')
        module = stages[int(stage)].blocks[int(block) - 1]
        module = module.attn.body if attention else module
        x = torch.from_numpy(SYNTH['synth_array'](
            'module_input', case['input'], seed=case['seed'])).double()
        with torch.no_grad():
            assert error(module(x), case['output']) < TOLERANCE, case['describe']


# --------------------------------------------------------------- pretrain_size


@pytest.mark.parametrize('pretrain_size', [
    pytest.param(None, marks=pytest.mark.slow), 224])
def test_activations_at_detection_size(pretrain_size):
    """They stay at the scale of 224 x 224 with, and explode without scaling."""
    reference = figures('reduceformer_b1')
    backbone = build(reference, gain=reference['synth_gain'],
                     pretrain_size=pretrain_size).backbone
    with torch.no_grad():
        scale = [[float(out.std()) for out in backbone(
            SYNTH['synth_image'](1, height, width).double())]
            for height, width in ((224, 224), (800, 1344))]
    growth = [large / small for small, large in zip(*scale)]
    print(f'pretrain_size={pretrain_size}: std at 800 x 1344 over that at 224 x 224, '
          f'stages 1 to 4: {", ".join(f"{x:.3g}" for x in growth)}')
    assert all(0.9 < x < 1.1 for x in growth[:2])
    if pretrain_size:
        assert all(0.7 < x < 1.4 for x in growth)
    else:
        assert growth[2] > 100 and growth[3] > 1e6


def test_pretrain_size_is_exact_at_224():
    reference = figures('reduceformer_b1')
    models = [build(reference, gain=reference['synth_gain'],
                    pretrain_size=size).backbone.float() for size in (None, 224)]
    x = SYNTH['synth_image'](1, 224, 224)
    with torch.no_grad():
        assert all(map(torch.equal, *(model(x) for model in models)))


def test_model_in_half_precision():
    """As close as the contract asks for under autocast; the original fails."""
    torch.manual_seed(0)
    model = ReduceFormer('b1', pretrain_size=224).eval()
    x = SYNTH['synth_image'](1, 96, 128)
    with torch.no_grad():
        expected = model(x)[0]
        out = copy.deepcopy(model).bfloat16()(x.bfloat16())[0]
    assert out.dtype == torch.bfloat16
    assert (out.float() - expected).abs().max() < 0.2 * expected.abs().max()


# ------------------------------------------------------- checkpoints and the rest


def test_efficientvit_is_refused():
    """It has the same names; one more convolution tells."""
    tensors = {
        key: torch.zeros((), dtype=getattr(torch, dtype)).expand(shape)
        for key, (shape, dtype) in figures('reduceformer_b1')['state_dict'].items()
    }
    prefix = 'backbone.stages.2.op_list.1.context_module.main.aggreg.0'
    tensors[f'{prefix}.1.weight'] = torch.zeros(384, 16, 1, 1)
    with pytest.raises(CheckpointError, match='EfficientViT'):
        convert_checkpoint(tensors)


def test_initialisation_is_the_published_one():
    torch.manual_seed(0)
    model = ReduceFormer('b1')
    model.init_weights()
    block = model.stages[2].blocks[0]
    assert block.attn.body.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert (block.attn.body.proj[1].weight == 1).all()  # attends from the beginning
    assert not block.local.body.project[1].weight.any()
    assert not block.local.body.expand[0].bias.any()
    assert not model.stem[1].body.project[1].weight.any()
    assert not model.stages[1].blocks[0].body.project[1].weight.any()
    assert (model.stages[1].downsample.project[1].weight == 1).all()
