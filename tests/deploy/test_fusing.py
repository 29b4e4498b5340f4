"""Fusing: the same numbers with fewer modules."""
import copy

import pytest
import timm
import torch
from mmpretrain.registry import MODELS
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from mm_efficient.analysis.backends import build_model
from mm_efficient.deploy.fusing import fuse
from mm_efficient.errors import InputError
from mm_efficient.models.ecoformer.backbone import EcoFormerPVT, EcoFormerTwins
from mm_efficient.models.layers import PointwiseConv


@torch.no_grad()
def randomize(model):
    """Norms and scales that matter: as they are initialised many do nothing."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, _BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.numel() == max(parameter.shape, default=1):
                parameter.normal_(1 if name == 'weight' else 0, 0.3)
    model.eval()  # of some models of MMPretrain it returns nothing
    return model.double()


def image(*shape):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def errors(model, fused, x):
    """Relative error of every output."""
    with torch.no_grad():
        return [((y - z).abs().max() / z.abs().max()).item()
                for y, z in zip(fused(x), model(x), strict=True)]


def batch_norms(model):
    return [name for name, m in model.named_modules() if isinstance(m, _BatchNorm)]


# ------------------------------------------------------------------ whole models


@pytest.mark.parametrize('name, backbone, converted, folded, left', [
    ('swiftformer_xs', False, 17, 25, []),
    ('soft_tiny', False, 0, 6, []),
    ('soft_tiny_norm', False, 0, 6, []),
    ('lowformer_b0', False, 0, 27, []),
    ('reduceformer_b1', False, 0, 35, []),
    # The next stage continues without the norm of a level
    ('swiftformer_xs_retinanet_1x', True, 16, 25,
     [f'output_norms.{i}' for i in (1, 2, 3)]),
    ('soft_tiny_retinanet_1x', True, 0, 6, []),
    ('lowformer_b0_retinanet_1x', True, 0, 26, []),
    ('reduceformer_b1_retinanet_1x', True, 0, 34, []),
])
def test_families(name, backbone, converted, folded, left):
    model = build_model(name, 'cpu', backbone)
    randomize(model)
    fused = copy.deepcopy(model)
    report = fuse(fused.model, image(1, 3, 64, 64), model.run)
    assert report.deviation < 1e-10
    assert max(errors(model, fused, image(2, 3, 96, 75))) < 1e-10
    assert batch_norms(fused.model) == left
    assert [row.name for row in report.left if 'Batch' in row.kind] == left
    assert (len(report.converted), len(report.folded)) == (converted, folded)
    assert not any(name.endswith('_scale') for name in fused.state_dict())
    before, after = report.parameters
    assert before == sum(p.numel() for p in model.parameters())
    assert after == sum(p.numel() for p in fused.parameters()) < before
    # What a class does beside convolving is kept
    assert [type(m) for m in fused.modules() if isinstance(m, PointwiseConv)] == [
        type(m) for m in model.modules() if isinstance(m, PointwiseConv)]


@pytest.mark.parametrize('cls, arch', [(EcoFormerPVT, 'b0'), (EcoFormerTwins, 's')])
def test_ecoformer_is_left_as_it_is(cls, arch):
    model = cls({**cls.ARCHS[arch], 'depths': [1, 1, 1, 1]})
    model.fit(torch.randn(2, 3, 96, 96))
    fused = copy.deepcopy(model)
    report = fuse(fused, torch.randn(1, 3, 64, 64))
    assert not report.converted and not report.folded and report.deviation == 0
    kind, = report.left
    assert kind.kind == 'LayerNorm' and 'modules' in kind.name
    assert all(map(torch.equal, model.state_dict().values(),
                   fused.state_dict().values()))


@pytest.mark.parametrize('name, folded, activations', [
    ('resnet18', 20, 0), ('efficientnet_b0', 49, 33), ('repvgg_a0', 44, 0)])
def test_timm(name, folded, activations):
    model = randomize(timm.create_model(name))
    norms = [m for m in model.modules() if isinstance(m, BatchNormAct2d)]
    assert sum(not isinstance(m.act, nn.Identity) for m in norms) == activations
    fused = copy.deepcopy(model)
    report = fuse(fused, image(1, 3, 64, 64))
    assert len(report.folded) == folded
    assert max(errors(model, fused, image(2, 3, 64, 96))) < 1e-10
    if name != 'repvgg_a0':  # has norms on shortcuts, without a convolution
        assert not batch_norms(fused) and not report.left


@pytest.mark.parametrize('backbone', [
    dict(type='RepVGG', arch='A0', out_indices=(0, 1, 2, 3)),
    dict(type='MobileOne', arch='s0', out_indices=(3, )),
    dict(type='RIFormer', arch='s12')])
def test_mmpretrain_simplifies_itself(backbone):
    model = randomize(MODELS.build(backbone))
    fused = copy.deepcopy(model)
    report = fuse(fused, image(1, 3, 64, 64))
    assert [row.kind for row in report.converted] == [backbone['type']]
    assert not batch_norms(fused) and not report.folded
    assert max(errors(model, fused, image(2, 3, 64, 96))) < 1e-10


def test_segmentor():
    model = randomize(build_model('swiftformer_xs_upernet_160k', 'cpu'))
    fused = copy.deepcopy(model)
    report = fuse(fused.model, image(1, 3, 64, 64), model.run)
    assert max(errors(model, fused, image(1, 3, 96, 64))) < 1e-10
    rows = {row.name: row for row in report.left}
    assert rows.pop('auxiliary_head.convs.0.bn').result == 'not used in this pass'
    assert list(rows) == batch_norms(fused.model)[:1] == ['backbone.output_norms.3']
    assert 'decode_head.bottleneck.bn (SyncBatchNorm): decode_head.bottleneck.conv' in (
        str(report).splitlines())


# ------------------------------------------------------------------- single layers


class Branches(nn.Module):
    """Applies a function to its layers and an image."""

    def __init__(self, function, **layers):
        super().__init__()
        self.layers = nn.ModuleDict(layers)
        self.function = function

    def forward(self, x):
        return self.function(x, **self.layers)


def conv(in_channels=3, out_channels=4, size=3, **options):
    return nn.Conv2d(in_channels, out_channels, size, **options)


def check(model, x):
    """Fuse and compare; returns the report and the fused model."""
    randomize(model)
    fused = copy.deepcopy(model)
    report = fuse(fused, x)
    assert max(errors(model, fused, torch.rand_like(x))) < 1e-10
    return report, fused


@pytest.mark.parametrize('layers, into, shape', [
    ([conv(bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)], '0', (2, 3, 8, 8)),
    ([conv(padding=1, padding_mode='reflect'), nn.BatchNorm2d(4, affine=False)], '0',
     (1, 3, 8, 8)),
    ([nn.ConvTranspose2d(3, 4, 2, 2), nn.BatchNorm2d(4)], '0', (1, 3, 8, 8)),
    ([nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4)], '0', (1, 3, 8)),
    ([nn.Linear(3, 4), nn.BatchNorm1d(4)], '0', (2, 3)),
    ([nn.Linear(3, 4, bias=False), nn.BatchNorm1d(4, affine=False)], '0', (2, 3)),
    ([nn.ReLU(), nn.BatchNorm2d(3), conv(size=1, bias=False)], '2', (1, 3, 8, 8)),
    ([nn.ReLU(), nn.BatchNorm2d(3, affine=False), conv(size=1, stride=2)], '2',
     (1, 3, 8, 8)),
    ([nn.ReLU(), nn.BatchNorm1d(3), nn.Linear(3, 4)], '2', (2, 3)),
    ([nn.ReLU(), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 4)], '3', (2, 3)),
    ([nn.BatchNorm2d(3), PointwiseConv(3, 4), nn.BatchNorm2d(4)], '1', (1, 3, 8, 8)),
    ([conv(), BatchNormAct2d(4, act_layer=nn.SiLU)], '0', (1, 3, 8, 8)),
])
def test_what_folds(layers, into, shape):
    report, fused = check(nn.Sequential(*layers), image(*shape))
    assert not report.left and not batch_norms(fused)
    assert {row.result for row in report.folded} == {into}
    assert all(isinstance(m, type(layer)) for layer, m in zip(layers, fused)
               if not isinstance(layer, _BatchNorm))


def inplace_before(x, bn, conv):
    y = bn(x)
    x.add_(1)
    return conv(y)


@pytest.mark.parametrize('function, layers, reason', [
    (lambda x, conv, bn: bn(y := conv(x)) + y,
     dict(conv=conv(), bn=nn.BatchNorm2d(4)), 'used elsewhere as well'),
    (lambda x, conv, bn: (y := conv(x), bn(y)),
     dict(conv=conv(), bn=nn.BatchNorm2d(4)), 'used elsewhere as well'),
    (lambda x, conv, bn: bn(F.relu_(conv(x))),
     dict(conv=conv(), bn=nn.BatchNorm2d(4)), 'used elsewhere as well'),
    (lambda x, conv, bn: conv(bn(x)),
     dict(conv=conv(padding=1), bn=nn.BatchNorm2d(3)), 'padded'),
    (lambda x, conv, bn: conv(bn(x)),
     dict(conv=conv(size=1, padding=1), bn=nn.BatchNorm2d(3)), 'padded'),
    (lambda x, conv, bn: conv(y := bn(x)).sum() + y,
     dict(conv=conv(size=1), bn=nn.BatchNorm2d(3)), 'used elsewhere as well'),
    (lambda x, conv, bn: bn(conv(x)) + conv(x).relu(),
     dict(conv=conv(), bn=nn.BatchNorm2d(4)), 'convolution that is called several'),
    (lambda x, conv, bn: bn(conv(x)) + bn(conv(-x)),
     dict(conv=conv(), bn=nn.BatchNorm2d(4)), 'called several times'),
    (lambda x, conv, bn: bn(conv(x)) + F.conv2d(x, conv.weight),
     dict(conv=conv(), bn=nn.BatchNorm2d(4)), 'whose weight is not its own'),
    (lambda x, conv, bn: bn(conv(x)),
     dict(conv=nn.utils.parametrizations.weight_norm(conv()), bn=nn.BatchNorm2d(4)),
     'whose weight is not its own'),
    (lambda x, conv, bn: bn(conv(x)),
     dict(conv=StdConv2d(3, 4, 3), bn=nn.BatchNorm2d(4)),
     'StdConv2d, which is more than a convolution'),
    (lambda x, conv, bn: bn(conv(x)),
     dict(conv=nn.ConvTranspose2d(3, 3, 2, groups=3), bn=nn.BatchNorm2d(3)),
     'a grouped transposed convolution'),
    (lambda x, conv, bn: inplace_before(x.clone(), bn, conv),
     dict(conv=conv(size=1), bn=nn.BatchNorm2d(3)), 'changed in place'),
    (lambda x, conv, bn: conv(bn(x)),
     dict(conv=conv(size=1), bn=BatchNormAct2d(3)), 'an activation'),
    (lambda x, conv, bn: bn(conv(x).flatten(2).transpose(1, 2)),
     dict(conv=conv(size=1), bn=nn.BatchNorm1d(64)), 'no convolution'),
    (lambda x, conv, bn: bn(conv(x.flatten(2))),
     dict(conv=nn.Linear(64, 3), bn=nn.BatchNorm1d(3)), 'of other channels'),
    (lambda x, conv, bn: bn(conv(x)),
     dict(conv=conv(), bn=nn.BatchNorm2d(4, track_running_stats=False)),
     'its statistics are of its input'),
    (lambda x, conv, bn: conv(x), dict(conv=conv(), bn=nn.BatchNorm2d(4)),
     'not used in this pass'),
])
def test_what_does_not_fold(function, layers, reason):
    report, fused = check(Branches(function, **layers), image(2, 3, 8, 8))
    row, = report.left
    assert reason in row.result and not report.folded
    assert row.name == 'layers.bn' and batch_norms(fused) == [row.name]


# --------------------------------------------------------------- converting, errors


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
    assert [row.name for row in report.converted] == ['0', '1']


def test_ours_convert_once():
    model = randomize(build_model('swiftformer_xs', 'cpu'))
    fused = copy.deepcopy(model)
    for _ in range(2):
        for module in fused.modules():
            if hasattr(module, 'switch_to_deploy'):
                module.switch_to_deploy()
    assert max(errors(model, fused, image(1, 3, 64, 64))) < 1e-10


def test_what_is_not_the_same_is_an_error():
    with pytest.raises(InputError, match=r'switch_to_deploy\(\) changes output 0 of 1 '
                                         r'by 1.0e\+00'):
        fuse(Counts(factor=2.), torch.randn(2, 3))
    with pytest.raises(InputError, match='Linear gives NaN or infinity for this image'):
        fuse(nn.Linear(3, 3), torch.full((2, 3), torch.nan))
    with pytest.raises(InputError, match='Linear gives no tensors'):
        fuse(nn.Linear(3, 3), torch.randn(2, 3), lambda model, x: None)

    # A norm that is run behind the model's back is found out, wherever it is
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn = conv(), nn.BatchNorm2d(4)
            self.norms = [self.bn]

        def forward(self, x):
            return dict(a=x, b=[self.norms[0](self.conv(x))])

    with pytest.raises(InputError, match='folding batch norms changes output 1 of 2'):
        fuse(randomize(Hidden()), image(1, 3, 8, 8))


def test_in_inference_mode():
    with torch.inference_mode():
        model = fuse_in_place(torch.randn(1, 3, 8, 8))
    assert not any(p.is_inference() for p in model.parameters())


def fuse_in_place(x):
    with torch.inference_mode(False):
        model = nn.Sequential(nn.BatchNorm2d(3), conv(size=1), nn.BatchNorm2d(4))
    assert len(fuse(model, x).folded) == 2 and not model.training
    return model
