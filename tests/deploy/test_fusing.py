"""Fusing: the same outputs from fewer modules."""
import copy

import pytest
import timm
import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mm_efficient.deploy import fuse, relative_error
from mm_efficient.errors import ExecutionError, InputError
from mm_efficient.files import configs_folder
from mm_efficient.models.ecoformer.backbone import EcoFormerPVT, EcoFormerTwins
from mm_efficient.models.layers import PointwiseConv
from mm_efficient.runs.configs import load_config

CLASSIFIERS = ('soft_tiny', 'soft_tiny_norm', 'swiftformer_xs', 'lowformer_b0',
               'reduceformer_b1')


@torch.no_grad()
def randomize(model):
    """Random norms and scales, many of which have no effect as initialised."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.numel() == max(parameter.shape, default=1):
                parameter.normal_(1 if name == 'weight' else 0, 0.3)
    model.eval()  # returns None for some models of MMPretrain
    return model.double()


def build(config):
    """The model of a config, randomised."""
    cfg = load_config(str(configs_folder() / f'{config}.py'))
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return randomize(MODELS.build(cfg.model))


def image(*shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def classify(model, x):
    return model(x, mode='tensor')


def fuse_and_compare(model, x, other, run=None):
    """Fuse a copy and compare outputs for another image; returns report and copy."""
    fused = copy.deepcopy(model)
    report = fuse(fused, x, run)
    run = run or (lambda model, x: model(x))
    with torch.no_grad():
        outputs, expected = run(fused, other), run(model, other)
    if isinstance(expected, torch.Tensor):
        outputs, expected = [outputs], [expected]
    assert max(map(relative_error, outputs, expected)) < 1e-10
    assert report.deviation < 1e-10
    return report, fused


def batch_norms(model):
    return [name for name, m in model.named_modules() if isinstance(m, _BatchNorm)]


# ------------------------------------------------------------------ whole models


@pytest.mark.parametrize('variant', CLASSIFIERS)
def test_classifiers_keep_no_batch_norm(variant):
    model = build(f'cls/{variant}_300e')
    report, fused = fuse_and_compare(model, image(1, 3, 64, 64), image(2, 3, 96, 75),
                                     classify)
    assert not batch_norms(fused)
    assert report.folded == len(batch_norms(model)) > 5
    assert bool(report.converted) == variant.startswith('swiftformer')
    assert not any(name.endswith('_scale') for name in fused.state_dict())
    assert report.parameters[0] == sum(p.numel() for p in model.parameters())
    assert report.parameters[1] == sum(p.numel() for p in fused.parameters())
    assert report.parameters[1] < report.parameters[0]
    # Convolutions of our own class are still that
    assert [type(m) for m in fused.modules() if isinstance(m, PointwiseConv)] == [
        type(m) for m in model.modules() if isinstance(m, PointwiseConv)]


@pytest.mark.parametrize('config, left', [
    # The next stage continues without the norm of a feature map
    ('det/swiftformer_xs_retinanet_1x', [f'output_norms.{i}' for i in (1, 2, 3)]),
    ('det/soft_tiny_retinanet_1x', []),
    ('det/lowformer_b0_retinanet_1x', []),
    ('det/reduceformer_b1_retinanet_1x', []),
])
def test_backbones(config, left):
    model = build(config).backbone
    report, fused = fuse_and_compare(model, image(1, 3, 64, 64), image(2, 3, 96, 75))
    assert batch_norms(fused) == report.left.get('BatchNorm2d', []) == left


def test_segmentor():
    model = build('seg/swiftformer_xs_upernet_160k')
    report, fused = fuse_and_compare(
        model, image(1, 3, 64, 64), image(1, 3, 96, 64),
        lambda model, x: model.encode_decode(x, [dict(img_shape=x.shape[2:])]))
    names = [f'backbone.output_norms.{i}' for i in range(4)]
    assert batch_norms(fused) == names and report.left == {'BatchNorm2d': names}
    assert len(report.converted) == 16
    assert '16 modules converted, 38 batch norms folded, 4 BatchNorm2d left; ' in (
        str(report))


@pytest.mark.parametrize('cls, arch', [(EcoFormerPVT, 'b0'), (EcoFormerTwins, 's')])
def test_ecoformer_is_left_as_it_is(cls, arch):
    model = cls({**cls.ARCHS[arch], 'depths': [1, 1, 1, 1]})
    model.fit(torch.randn(2, 3, 96, 96))
    fused = copy.deepcopy(model)
    report = fuse(fused, torch.randn(1, 3, 64, 64))
    assert not report.converted and not report.folded and report.deviation == 0
    assert list(report.left) == ['LayerNorm']
    assert all(map(torch.equal, model.state_dict().values(),
                   fused.state_dict().values()))


@pytest.mark.parametrize('name, left', [
    ('resnet18', 0),
    ('efficientnet_b0', 0),  # activations are part of its norms
    ('repvgg_a0', 0),  # branches are merged
    ('resnetv2_50', 17),  # norms in front of the convolutions
])
def test_timm(name, left):
    model = randomize(timm.create_model(name))
    report, fused = fuse_and_compare(model, image(1, 3, 64, 64), image(2, 3, 64, 96))
    assert len(batch_norms(fused)) == left
    assert report.folded == len(batch_norms(model)) - left


@pytest.mark.parametrize('backbone', [
    dict(type='RepVGG', arch='A0', out_indices=(0, 1, 2, 3)),
    dict(type='MobileOne', arch='s0', out_indices=(3, )),
    dict(type='RIFormer', arch='s12')])
def test_mmpretrain_simplifies_itself(backbone):
    model = randomize(MODELS.build(backbone))
    report, fused = fuse_and_compare(model, image(1, 3, 64, 64), image(2, 3, 64, 96))
    assert report.converted == [''] and not batch_norms(fused)


# ------------------------------------------------------------------ single layers


def conv(in_channels=3, out_channels=4, size=3, **options):
    return nn.Conv2d(in_channels, out_channels, size, **options)


class Shared(nn.Module):
    """A convolution with two norms behind it, as in MMDetection's RetinaSepBNHead."""

    def __init__(self):
        super().__init__()
        layer = conv()
        self.first = nn.Sequential(layer, nn.BatchNorm2d(4))
        self.second = nn.Sequential(layer, nn.BatchNorm2d(4))

    def forward(self, x):
        return self.first(x), self.second(x)


@pytest.mark.parametrize('layers', [
    [conv(bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)],
    [nn.ReLU(inplace=True), conv(groups=1), nn.BatchNorm2d(4)],
    [PointwiseConv(3, 4), nn.BatchNorm2d(4)],
    [conv(padding=1, padding_mode='reflect'), nn.SyncBatchNorm(4)],
    [conv(), BatchNormAct2d(4, act_layer=nn.SiLU)],
    [nn.Sequential(conv(), BatchNormAct2d(4)), conv(4), BatchNormAct2d(4)],
])
def test_what_folds(layers):
    model = randomize(nn.Sequential(*layers))
    report, fused = fuse_and_compare(model, image(1, 3, 8, 8), -image(1, 3, 8, 8))
    assert not batch_norms(fused) and not report.left
    assert report.folded == len(batch_norms(model))
    assert not any(parameter.requires_grad for parameter in fused.parameters())


@pytest.mark.parametrize('layers, shape', [
    ([nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4)], (1, 3, 8, 8)),
    ([nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)], (1, 3, 8)),
    ([nn.Linear(3, 4), nn.BatchNorm1d(4)], (2, 3)),
    ([nn.BatchNorm2d(3), conv(size=1)], (1, 3, 8, 8)),
])
def test_what_stays(layers, shape):
    model = randomize(nn.Sequential(*layers))
    report, fused = fuse_and_compare(model, image(*shape), -image(*shape))
    assert batch_norms(fused) == batch_norms(model) and report.folded == 0
    assert sum(map(len, report.left.values())) == 1


@pytest.mark.parametrize('model', [
    nn.Sequential(conv(), nn.ReLU(), nn.BatchNorm2d(4)),
    nn.Sequential(conv(out_channels=4), nn.ConvTranspose2d(4, 4, 2), nn.BatchNorm2d(4)),
    nn.Sequential(StdConv2d(3, 4, 3), nn.BatchNorm2d(4)),
    Shared(),
], ids=['activation', 'transposed', 'standardised', 'shared'])
def test_wrong_folding_is_found(model):
    with pytest.raises(ExecutionError, match=r'fuse_conv_bn\(\) changes output \d of'):
        fuse(randomize(model), image(1, 3, 8, 8))


@pytest.mark.parametrize('layers', [
    [conv(), nn.BatchNorm2d(4, affine=False)],
    [conv(), nn.BatchNorm2d(4, track_running_stats=False)],
    [nn.utils.parametrizations.weight_norm(conv()), nn.BatchNorm2d(4)],
])
def test_what_mmcv_cannot_fold_is_an_error(layers):
    with pytest.raises(ExecutionError, match=r'Sequential cannot be fused: \w+Error'):
        fuse(randomize(nn.Sequential(*layers)), image(1, 3, 8, 8))


# ------------------------------------------------------------- conversion, errors


class Counts(nn.Module):
    def __init__(self, *parts, factor=1.):
        super().__init__()
        self.parts, self.calls, self.factor = nn.Sequential(*parts), 0, factor

    def forward(self, x):
        return self.parts(x) * self.factor**self.calls

    def switch_to_deploy(self):
        self.calls += 1


def test_the_outermost_module_converts():
    model = nn.Sequential(Counts(Counts(), nn.Linear(3, 3)), Counts())
    report = fuse(model, torch.randn(2, 3))
    assert [m.calls for m in model.modules() if isinstance(m, Counts)] == [1, 0, 1]
    assert report.converted == ['0', '1']


def test_ours_convert_once():
    model = build('cls/swiftformer_xs_300e')
    fused = copy.deepcopy(model)
    for _ in range(2):
        for module in fused.modules():
            if hasattr(module, 'switch_to_deploy'):
                module.switch_to_deploy()
    x = image(1, 3, 64, 64)
    with torch.no_grad():
        assert relative_error(classify(fused, x), classify(model, x)) < 1e-10


def test_outputs_that_change_or_are_unusable_are_errors():
    with pytest.raises(ExecutionError, match=r'switch_to_deploy\(\) changes output 0 '
                                             r'of 1 by 1.0e\+00'):
        fuse(Counts(factor=2.), torch.randn(2, 3))
    with pytest.raises(InputError, match='Linear returns NaN or infinity'):
        fuse(nn.Linear(3, 3), torch.full((2, 3), torch.nan))
    with pytest.raises(InputError, match='Linear returns no tensors'):
        fuse(nn.Linear(3, 3), torch.randn(2, 3), lambda model, x: None)


def test_relative_error():
    reference = torch.tensor([1., -4., 0.])
    assert relative_error(torch.tensor([1., -3., 0.]), reference) == 0.25
    assert relative_error(torch.zeros(2), reference) == float('inf')
    assert relative_error(torch.zeros(0), torch.zeros(0)) == 0
    nan = relative_error(torch.tensor([1., float('nan'), 0.]), reference)
    assert nan != nan


def test_inputs_and_models_of_inference_mode():
    with torch.inference_mode():
        x = torch.randn(1, 3, 8, 8)
        model = nn.Sequential(nn.ReLU(inplace=True), conv(), nn.BatchNorm2d(4))
        assert fuse(model, x).folded == 1
    assert not model.training
