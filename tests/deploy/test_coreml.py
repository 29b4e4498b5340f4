"""Export to Core ML; packages are computed operator by operator, see `ml_program`."""
import copy
import sys
from importlib.util import find_spec

import pytest
import torch
import torch.nn.functional as F
from ml_program import compute
from mmpretrain.registry import MODELS
from torch import nn

import mm_efficient  # noqa: F401
from mm_efficient.deploy.coreml import _decompositions, export_coreml
from mm_efficient.deploy.exporting import check_format
from mm_efficient.errors import ExecutionError, InputError
from mm_efficient.models.base import fit_where_needed

LEVELS = ('feat0', 'feat1', 'feat2', 'feat3')
DEPTHS = [1, 1, 1, 1]
# One block a stage; all kinds of blocks are there
BACKBONES = dict(
    soft=dict(type='SOFT', arch=dict(embed_dims=[32, 64, 96, 64], depths=DEPTHS)),
    soft_norm=dict(type='SOFT', normalized=True, pretrain_size=224, arch=dict(
        embed_dims=[32, 64, 96, 64], depths=DEPTHS), out_indices=(0, )),
    ecoformer_pvt=dict(type='EcoFormerPVT', arch=dict(
        embed_dims=[16, 32, 64, 64], num_heads=[1, 2, 4, 4], depths=DEPTHS,
        mlp_ratios=[4, 4, 4, 4])),
    ecoformer_twins=dict(type='EcoFormerTwins', arch=dict(
        embed_dims=[16, 32, 64, 64], num_heads=[1, 2, 4, 4], depths=DEPTHS,
        mlp_ratios=[4, 4, 4, 4])),
    swiftformer=dict(type='SwiftFormer', output_norm=True, arch=dict(
        embed_dims=[16, 32, 48, 64], depths=[2, 1, 1, 1])),
    lowformer=dict(type='LowFormer', arch=dict(
        embed_dims=[32, 64, 128, 256], depths=[0, 0, 1, 1], stem_dims=16, stem_depth=1,
        down_ratio=4, attention=True, mlp=True)),
    reduceformer=dict(type='ReduceFormer', pretrain_size=224, arch=dict(
        embed_dims=[16, 32, 48, 64], depths=DEPTHS, stem_dims=16, stem_depth=1)),
)
FLOAT32_ONLY = {'soft', 'soft_norm', 'ecoformer_pvt', 'ecoformer_twins', 'reduceformer'}
pytestmark = [  # of PyTorch and coremltools about themselves
    pytest.mark.filterwarnings('ignore:.*LeafSpec:FutureWarning'),
    pytest.mark.filterwarnings('ignore:.*_TORCH_OPS_REGISTRY:DeprecationWarning'),
]
needs_coremltools = pytest.mark.skipif(
    not find_spec('coremltools'), reason='coremltools is not installed')


def build(name):
    """A backbone in which nothing is zero or one."""
    torch.manual_seed(0)
    model = MODELS.build({'out_indices': (0, 1, 2, 3), **BACKBONES[name]}).eval()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            if parameter.ndim < 2 or parameter.shape[0] == 1:
                nn.init.normal_(parameter, 1, 0.2)  # norms, position embeddings
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2)
    fit_where_needed(model, torch.randn(2, 3, 96, 96))
    return model.requires_grad_(False)


@needs_coremltools
@pytest.mark.parametrize('name', [  # the second class of a family differs little
    pytest.param(name, marks=[pytest.mark.slow] * (name in ('soft_norm',
                                                            'ecoformer_pvt')))
    for name in BACKBONES])
def test_package_computes_what_the_model_does(name, tmp_path):
    model = build(name)
    path = tmp_path / 'model.mlpackage'
    names = tuple(f'feat{i}' for i in model.out_indices)
    export_coreml(model, torch.rand(1, 3, 72, 96), path, output_names=names,
                  input_name='image')
    x = torch.randn(1, 3, 72, 96)
    outputs = compute(path, {'image': x})
    expected = copy.deepcopy(model).double()(x.double())
    assert tuple(outputs) == names
    for level, reference in zip(outputs.values(), expected):
        error = (level - reference).abs().max() / reference.abs().max()
        assert level.shape == reference.shape
        assert error < 5e-6  # of constants in float32
    assert [entry.name for entry in tmp_path.iterdir()] == ['model.mlpackage']


@needs_coremltools
def test_package_of_a_classifier_has_described_inputs_and_outputs(tmp_path):
    import coremltools as ct
    model = nn.Sequential(build('swiftformer'), MODELS.build(
        dict(type='DistilledClsHead', num_classes=10, in_channels=64)))
    model = Tupled(model).eval()
    path = tmp_path / 'new' / 'model.mlpackage'
    export_coreml(model, torch.rand(1, 3, 64, 64), path, output_names=['output'],
                  input_name='input')
    description = ct.utils.load_spec(str(path)).description
    shapes = {feature.name: list(feature.type.multiArrayType.shape)
              for feature in [*description.input, *description.output]}
    assert shapes == dict(input=[1, 3, 64, 64], output=[1, 10])
    x = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(
        compute(path, {'input': x}, torch.float32)['output'], model(x)[0])


class Tupled(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, image):
        return (self.model(image), )


@needs_coremltools
def test_fp16_halves_the_package_which_is_replaced(tmp_path):
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 64, 3, 2), nn.GELU(), nn.Conv2d(64, 9, 3)
    model = Tupled(nn.Sequential(*layers)).requires_grad_(False).eval()
    x = torch.randn(1, 3, 64, 64)
    path = tmp_path / 'model.mlpackage'
    sizes = []
    for fp16 in (False, True):
        export_coreml(model, x, path, output_names=['output'], fp16=fp16)
        sizes.append((path / 'Data/com.apple.CoreML/weights/weight.bin').stat().st_size)
    assert 0.45 < sizes[1] / sizes[0] < 0.65
    for level, reference in zip(compute(path, {'input': x}).values(), model(x)):
        error = (level - reference).abs().max() / reference.abs().max()
        assert 1e-5 < error < 1e-2  # of the weights


@pytest.mark.parametrize('name', sorted(FLOAT32_ONLY))
def test_fp16_is_refused_where_it_overflows(name, tmp_path):
    with pytest.raises(InputError, match='exceeds the range of float16.* in float32'):
        export_coreml(build(name), torch.rand(1, 3, 64, 64), tmp_path / 'm.mlpackage',
                      output_names=LEVELS, fp16=True)
    assert not list(tmp_path.iterdir())


class Unsupported(nn.Module):
    def forward(self, image):
        return (torch.linalg.eigvalsh(image), )


@needs_coremltools
def test_what_cannot_be_converted_leaves_the_old_package(tmp_path):
    path = tmp_path / 'model.mlpackage'
    path.mkdir()
    (path / 'Manifest.json').write_text('old')
    with pytest.raises(ExecutionError, match='eigvalsh.*ONNX|eigh.*ONNX'):
        export_coreml(Unsupported(), torch.rand(1, 3, 8, 8), path, output_names=['out'])
    assert [entry.name for entry in tmp_path.iterdir()] == ['model.mlpackage']
    assert (path / 'Manifest.json').read_text() == 'old'


@needs_coremltools
def test_weights_that_are_no_numbers_are_refused(tmp_path):
    model = Tupled(nn.Conv2d(3, 4, 3))
    with torch.no_grad():
        model.model.weight[0, 0, 0, 0] = float('nan')
    with pytest.raises(InputError, match='check the checkpoint'):
        export_coreml(model.eval(), torch.rand(1, 3, 8, 8), tmp_path / 'm.mlpackage',
                      output_names=['out'])
    assert not list(tmp_path.iterdir())


@needs_coremltools
def test_wrong_number_of_names_is_refused(tmp_path):
    with pytest.raises(ExecutionError, match='cannot be exported'):
        export_coreml(Tupled(nn.Conv2d(3, 4, 3)).eval(), torch.rand(1, 3, 8, 8),
                      tmp_path / 'm.mlpackage', output_names=['one', 'two'])
    assert not list(tmp_path.iterdir())


def test_missing_coremltools(monkeypatch):
    monkeypatch.setitem(sys.modules, 'coremltools', None)
    with pytest.raises(InputError, match=r"pip install 'mm-efficient\[coreml\]'"):
        check_format('coreml', 'm.mlpackage')


def test_files_that_are_no_packages_are_kept(tmp_path):
    path = tmp_path / 'taken.mlpackage'
    path.write_text('a file')
    with pytest.raises(InputError, match='is not a Core ML package'):
        export_coreml(nn.Identity(), torch.rand(1, 3, 8, 8), path, output_names=['out'])
    assert path.read_text() == 'a file'


def test_replacements_compute_the_same():
    aten, table = torch.ops.aten, _decompositions()
    torch.manual_seed(0)
    x, y, z = torch.randn(3, 4, 5, 5, dtype=torch.float64)
    close = torch.testing.assert_close
    close(table[aten.addcmul.default](x, y, z, value=2),
          torch.addcmul(x, y, z, value=2))
    close(table[aten.baddbmm.default](x, y, z, beta=2, alpha=-1),
          torch.baddbmm(x, y, z, beta=2, alpha=-1))
    close(table[aten.gelu.default](x, approximate='tanh'),
          F.gelu(x, approximate='tanh'))
    close(table[aten.reciprocal.default](x), 1 / x)
    close(table[aten.pad.default](x, (-1, 2, 3, -2)), F.pad(x, (-1, 2, 3, -2)))
    for size in ((3, 9), (5, 1), (12, 13)):
        close(table[aten.upsample_bilinear2d.vec](x[None], size, False, None),
              F.interpolate(x[None], size, mode='bilinear'))
