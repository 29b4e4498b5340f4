"""The contract of `PyramidBackbone`, for every backbone the package registers."""
import copy
import functools
import io
import re

import numpy as np
import pytest
import torch
from mmcv.cnn.bricks import DropPath
from mmpretrain.registry import MODELS
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import mm_efficient  # noqa: F401
from mm_efficient.analysis.complexity import count
from mm_efficient.models.base import PyramidBackbone, fit_where_needed

STRIDES = (4, 8, 16, 32)
ALL_STAGES = (0, 1, 2, 3)
BACKBONES = {
    name: cls
    for name, cls in MODELS.module_dict.items()
    if isinstance(cls, type) and issubclass(cls, PyramidBackbone)
}
# Settings beside the arch that make another function of the same backbone
OPTIONS = {
    'SOFT': [{}, {'normalized': True}],
    'SwiftFormer': [{'output_norm': True}],
    'EcoFormerPVT': [{}, {'attention': 'softmax'}],
    'EcoFormerTwins': [{}, {'attention': 'softmax'}],
}


@functools.cache
def smallest_arch(cls):
    def size(arch):
        with torch.device('meta'):
            return sum(p.numel() for p in cls(arch).parameters())
    return min(cls.ARCHS, key=size)


def shallow(cls, depth):
    """The smallest arch with so many blocks per stage, of which Twins has two kinds."""
    return {**cls.ARCHS[smallest_arch(cls)], 'depths': [depth] * 4}


SMALLEST = [
    pytest.param(cls, dict(arch=shallow(cls, 2), **options),
                 id='-'.join([name, *map(str, options.values())]))
    for name, cls in BACKBONES.items() for options in OPTIONS.get(name, [{}])
]
# Tracing takes long: with one block per stage, and to ONNX where tests/deploy does not:
# there are SOFT, SwiftFormer, LowFormer, among the slow ReduceFormer and EcoFormerPVT.
SHALLOW = [pytest.param(cls, {**cfg, 'arch': shallow(cls, 1)}, id=param.id)
           for param in SMALLEST for cls, cfg in [param.values]]
ONNX = [*{param.values[0]: param.values for param in SHALLOW[::-1] if not re.match(
    'SOFT|SwiftFormer|LowFormer|ReduceFormer|EcoFormerPVT', param.id)}.values()]
FITTED = {}  # (class, settings) -> state of the model once fitted
every_backbone = pytest.mark.parametrize('cls, cfg', SMALLEST)
every_family = pytest.mark.parametrize('cls', BACKBONES.values(), ids=BACKBONES)


def build(cls, cfg, **options):
    """A model whose every parameter matters, the same in every call."""
    key = repr((cls, cfg))
    if key not in FITTED:  # fitting takes long: once for all levels is enough
        torch.manual_seed(0)
        FITTED[key] = fitted(cls(**cfg, out_indices=ALL_STAGES)).state_dict()
    model = cls(**{'out_indices': ALL_STAGES, **cfg, **options})
    model.load_state_dict({name: FITTED[key][name] for name in model.state_dict()})
    return model


def fitted(model):
    model._init_from_scratch()
    for parameter in model.parameters():  # zero biases would hide mistakes
        if parameter.numel() == max(parameter.shape):  # and small layer scales
            nn.init.normal_(parameter, float(parameter.detach().mean().round()), 0.1)
    fit_where_needed(model, image(2, 96, 96))
    assert getattr(model, 'is_fitted', True)
    return model


def image(batch, height, width, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, 3, height, width, generator=generator)


def relative_error(outs, references):
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max())
               for a, b in zip(outs, references))


def test_families_are_found():
    assert BACKBONES and all(cls.ARCHS for cls in BACKBONES.values())


# ---------------------------------------------------------------- construction


@pytest.mark.parametrize('cls, arch', [(cls, arch) for cls in BACKBONES.values()
                                       for arch in cls.ARCHS])
def test_every_arch_has_the_widths_it_declares(cls, arch):
    with torch.device('meta'):
        model = cls(arch, out_indices=ALL_STAGES).eval()
        outs = model(torch.empty(2, 3, 70, 101))
    assert model.feature_channels == tuple(cls.ARCHS[arch]['embed_dims'])
    assert [tuple(out.shape) for out in outs] == [
        (2, channels, -(-70 // stride), -(-101 // stride))
        for channels, stride in zip(model.feature_channels, STRIDES)]
    assert [len(stage.blocks) for stage in model.stages] == list(
        cls.ARCHS[arch]['depths'])


@every_family
def test_arch_as_dict_is_the_arch_by_name(cls):
    name = smallest_arch(cls)
    by_name, by_dict = cls(name), cls(copy.deepcopy(cls.ARCHS[name]))
    assert {k: v.shape for k, v in by_name.state_dict().items()} == {
        k: v.shape for k, v in by_dict.state_dict().items()}


@every_family
def test_wrong_arguments_are_explained(cls):
    name = smallest_arch(cls)
    with pytest.raises(ValueError, match=f"'nonsense'.*{name}"):
        cls('nonsense')
    settings = dict(cls.ARCHS[name])
    settings.pop('depths')
    with pytest.raises(ValueError, match=r"missing: \['depths'\]"):
        cls(settings)
    with pytest.raises(ValueError, match=r"unknown: \['width'\]"):
        cls({**cls.ARCHS[name], 'width': 3})
    for depths in ([1, 1, 1], [1] * 5, 4):
        with pytest.raises(ValueError, match='depths of an arch dict.* 4 entries'):
            cls({**cls.ARCHS[name], 'depths': depths})
    for wrong in (dict(out_indices=(1, 0)), dict(out_indices=(4, )),
                  dict(out_indices=(-5, )), dict(out_indices=(3, -1)),
                  dict(out_indices=()), dict(frozen_stages=5),
                  dict(pretrain_size=16)):
        with pytest.raises(ValueError, match=f'{next(iter(wrong))} must be'):
            cls(name, **wrong)
    for wrong in (123, ['weights.pth']):
        with pytest.raises(TypeError, match='init_cfg must be a dict, a list of dicts'):
            cls(name, init_cfg=wrong)


@every_family
def test_wrong_images_are_explained(cls):
    with torch.device('meta'):
        model = cls(smallest_arch(cls), in_channels=4).eval()
        with pytest.raises(ValueError, match=r'\(B, 4, H, W\), got \(1, 3, 64, 64\)'):
            model(torch.empty(1, 3, 64, 64))
        with pytest.raises(ValueError, match='31 x 64'):
            model(torch.empty(1, 4, 31, 64))
        with pytest.raises(ValueError, match=r'got \(4, 64, 64\)'):
            model(torch.empty(4, 64, 64))
        assert model(torch.empty(1, 4, 32, 32))[0].shape[-2:] == (1, 1)


# --------------------------------------------------------------------- forward


@every_backbone
@pytest.mark.parametrize('height, width', [(64, 96), (75, 99), (33, 32)])
def test_pyramid_of_any_size(cls, cfg, height, width):
    model = build(cls, cfg).eval()
    with torch.no_grad():
        outs = model(image(1, height, width))
    for out, channels, stride in zip(outs, model.feature_channels, STRIDES):
        assert out.shape == (1, channels, -(-height // stride), -(-width // stride))
        assert out.isfinite().all() and out.std() > 0
        assert out.is_contiguous()  # as of a ResNet; heads call .view
    with torch.no_grad():
        others = model(image(1, height, width).to(memory_format=torch.channels_last))
    assert all(out.is_contiguous(memory_format=torch.channels_last) for out in others)


@every_backbone
def test_batch_without_images(cls, cfg):
    with torch.no_grad():
        outs = build(cls, cfg).eval()(torch.empty(0, 3, 64, 96))
    assert [(len(out), *out.shape[2:]) for out in outs] == [
        (0, 64 // stride, 96 // stride) for stride in STRIDES]


@pytest.mark.filterwarnings('ignore:torch.ao.quantization:DeprecationWarning')
@every_backbone
def test_linear_layers_in_integers(cls, cfg):
    """PyTorch's dynamic quantisation replaces them by modules without weights."""
    if 'fbgemm' not in torch.backends.quantized.supported_engines:
        pytest.skip('needs an engine for quantised layers')
    x, model = image(2, 64, 96), build(cls, cfg).eval()
    quantised = torch.ao.quantization.quantize_dynamic(copy.deepcopy(model))
    with torch.no_grad():
        assert relative_error(quantised(x), model(x)) < 0.3


@every_backbone
def test_convolutions_keep_the_layout_of_an_image(cls, cfg):
    """Else they copy what they read; strides of a batch of one are easily lost."""
    model, copied = build(cls, cfg).eval(), []

    def check(module, args):
        x = args[0]
        usual = [torch.empty(x.shape, memory_format=layout, device='meta').stride()
                 for layout in (torch.contiguous_format, torch.channels_last)]
        if x.stride() not in usual:
            copied.append((module, x.shape, x.stride()))

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(check)
    with torch.no_grad():
        model(image(1, 64, 96))
    assert not copied


@every_backbone
def test_out_indices_select_levels(cls, cfg):
    x = image(1, 64, 64)
    every = build(cls, cfg).eval()
    with torch.no_grad():
        outs = every(x)
    for indices in (0, (1, 3), (2, ), (-2, -1)):
        model = cls(**{**cfg, 'out_indices': indices}).eval()
        model.load_state_dict({k: v for k, v in every.state_dict().items()
                               if k in model.state_dict()})
        with torch.no_grad():
            selected = model(x)
        indices = (indices, ) if isinstance(indices, int) else indices
        assert len(selected) == len(indices) == len(model.out_indices)
        assert all(torch.equal(a, outs[i]) for a, i in zip(selected, indices))


@every_backbone
def test_images_do_not_depend_on_the_batch(cls, cfg):
    model = build(cls, cfg).double().eval()
    x = torch.cat([image(1, 64, 96, seed=1), 3 * image(1, 64, 96, seed=2)]).double()
    with torch.no_grad():
        together = model(x)
        alone = [torch.cat(level) for level in zip(model(x[:1]), model(x[1:]))]
    assert relative_error(together, alone) < 1e-12


@every_backbone
def test_pretrain_size_is_neutral_at_that_size(cls, cfg):
    published = build(cls, cfg).eval()
    bounded = build(cls, cfg, pretrain_size=64).eval()
    x = image(1, 64, 64)
    with torch.no_grad():
        assert all(map(torch.equal, published(x), bounded(x)))


@every_family
def test_cost_is_linear_in_the_pixels(cls):
    """Per pixel, 800 x 1344 costs at most 10 % more than 224 x 224."""
    with torch.device('meta'):
        model = cls(shallow(cls, 2), out_indices=ALL_STAGES, pretrain_size=224).eval()

        def flops_per_pixel(height, width):
            return count(model, torch.empty(1, 3, height, width)).macs / height / width
        ratio = flops_per_pixel(800, 1344) / flops_per_pixel(224, 224)
    assert 0.8 < ratio < 1.1


@every_backbone
@pytest.mark.parametrize('dtype, tolerance', [(torch.bfloat16, 0.2),
                                              (torch.float16, 0.05)])
def test_autocast_is_finite_and_close(cls, cfg, dtype, tolerance):
    if dtype == torch.float16 and torch.__version__ < '2.2':
        pytest.skip('no autocast to float16 on the CPU')
    model = build(cls, cfg, pretrain_size=224).eval()
    x = image(1, 96, 128)
    with torch.no_grad():
        reference = model(x)
        with torch.autocast('cpu', dtype):
            outs = model(x)
    assert all(out.isfinite().all() for out in outs)
    assert relative_error(outs, reference) < tolerance


@pytest.mark.parametrize('cls, cfg', SHALLOW)
def test_images_without_contrast_and_of_huge_values(cls, cfg):
    model = build(cls, cfg, pretrain_size=224).train()
    zeros = torch.zeros(1, 3, 64, 64)
    for x in (torch.cat([zeros, zeros + 2]), 1e18 * image(2, 64, 64)):
        model.zero_grad()
        outs = model(x)
        sum(out.mean() for out in outs).backward()
        assert all(out.isfinite().all() for out in outs)
        assert all(p.grad.isfinite().all() for p in model.parameters())


# -------------------------------------------------------------------- training


def set_of_trainable(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@every_backbone
@pytest.mark.parametrize('frozen_stages', [-1, 0, 1, 4])
def test_frozen_stages(cls, cfg, frozen_stages):
    model = build(cls, cfg, frozen_stages=frozen_stages).train()
    frozen = {-1: (), 0: ('stem.', ), 1: ('stem.', 'stages.0.'), 4: ('', )}
    names = {name for name, _ in model.named_parameters()}
    assert set_of_trainable(model) == {
        name for name in names if not name.startswith(frozen[frozen_stages])}
    before = copy.deepcopy(model.state_dict())
    model(image(2, 64, 64))
    changed = {key for key, value in model.state_dict().items()
               if not torch.equal(value, before[key])}
    assert not any(key.startswith(frozen[frozen_stages]) for key in changed)


@every_backbone
def test_norm_eval_keeps_statistics(cls, cfg):
    x = image(2, 64, 64)
    for norm_eval in (True, False):
        model = build(cls, cfg, norm_eval=norm_eval).train()
        norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
        assert all(m.training != norm_eval for m in norms)
        before = [m.running_mean.clone() for m in norms]
        model(x)
        # A family without batch norms has nothing to keep
        assert all(torch.equal(m.running_mean, b) == norm_eval
                   for m, b in zip(norms, before))
        assert all(p.requires_grad for p in model.parameters())


def train_step(model, x):
    """Gradients of a loss on every level, and the state left behind."""
    torch.manual_seed(1)
    model.train().zero_grad()
    loss = sum((out * torch.linspace(-1, 1, out.shape[1])[:, None, None]).mean()
               for out in model(x))
    loss.backward()
    return ({name: p.grad for name, p in model.named_parameters()},
            model.state_dict())


@every_backbone
def test_checkpointing_changes_nothing(cls, cfg):
    x = image(2, 64, 64)
    grads, state = train_step(build(cls, cfg, with_cp=False), x)
    cp_grads, cp_state = train_step(build(cls, cfg, with_cp=True), x)
    for name, grad in grads.items():
        torch.testing.assert_close(cp_grads[name], grad, rtol=1e-4, atol=1e-6)
    for key, value in state.items():
        torch.testing.assert_close(cp_state[key], value)


@every_backbone
@pytest.mark.parametrize('out_indices', [ALL_STAGES, (3, ), (0, 1)])
def test_every_parameter_has_a_gradient(cls, cfg, out_indices):
    model = build(cls, cfg, out_indices=out_indices, drop_path_rate=0.)
    grads, _ = train_step(model, image(2, 64, 64))
    without = [name for name, grad in grads.items()
               if grad is None or not grad.abs().sum() > 0]
    # Keys' biases shift all scores of a query alike: zero up to rounding
    assert not without


@every_backbone
def test_drop_path_grows_linearly(cls, cfg):
    model = cls(**cfg, out_indices=ALL_STAGES, drop_path_rate=0.3)
    rates = {}  # block -> rate, without the blocks that are never dropped
    for i, stage in enumerate(model.stages):
        for j, block in enumerate(stage.blocks):
            found = [getattr(m, 'drop_prob', getattr(m, 'p', None))
                     for m in block.modules() if isinstance(m, (DropPath, nn.Dropout))]
            if found:
                rates[i, j] = max(found)
                assert set(found) <= {0., rates[i, j]}
        assert not stage.blocks or (i, len(stage.blocks) - 1) in rates
    blocks = [(i, j) for i, stage in enumerate(model.stages)
              for j in range(len(stage.blocks))]
    expected = dict(zip(blocks, np.linspace(0, 0.3, len(blocks))))
    assert rates == pytest.approx({block: expected[block] for block in rates})


@every_backbone
def test_layer_depths_follow_the_network(cls, cfg):
    model = cls(**cfg, out_indices=ALL_STAGES)
    depths = {name: model.get_layer_depth(f'backbone.{name}', 'backbone.')
              for name, _ in model.named_parameters()}
    total = sum(len(stage.blocks) for stage in model.stages) + 2
    assert {num for _, num in depths.values()} == {total}
    # Everything behind the last block is the last layer, which may be empty
    assert {depth for depth, _ in depths.values()} >= set(range(total - 1))
    assert all(depth == 0 for name, (depth, _) in depths.items()
               if name.startswith('stem.'))
    first = {}
    for name, (depth, _) in depths.items():
        if '.blocks.' in name:
            first.setdefault(name.split('.blocks.')[0], []).append(depth)
    order = [(min(d), max(d)) for _, d in sorted(first.items())]
    assert all(a[1] + 1 == b[0] for a, b in zip(order, order[1:]))
    assert model.get_layer_depth('head.fc.weight', 'backbone.')[0] == total - 1


# ------------------------------------------------------------- state and export


@every_backbone
def test_state_dict_round_trip(cls, cfg):
    model, file = build(cls, cfg).eval(), io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = cls(**cfg, out_indices=ALL_STAGES).eval()
    other.load_state_dict(torch.load(file, weights_only=True))
    x = image(1, 64, 64)
    with torch.no_grad():
        assert all(map(torch.equal, copy.deepcopy(model)(x), other(x)))


# Forms that differ little: SOFT's in the scales of the landmarks, EcoFormer's with
# softmax is MMPretrain's attention.
# Checkpointing is the same for all: a family with and one without batch norms
@pytest.mark.parametrize('cls, cfg, with_cp', [
    pytest.param(*param.values, with_cp, id=param.id + '-with_cp' * with_cp,
                 marks=[pytest.mark.slow] * (param.id == 'SOFT'
                                             or param.id.endswith('softmax')))
    for param in SHALLOW
    for with_cp in [param.id in ('SwiftFormer-True', 'EcoFormerPVT')]])
def test_compiles_in_one_graph(cls, cfg, with_cp):
    model, x = build(cls, cfg, pretrain_size=224, drop_path_rate=0.), image(2, 64, 96)
    other = build(cls, cfg, pretrain_size=224, drop_path_rate=0., with_cp=with_cp)
    torch._dynamo.reset()
    compiled = torch.compile(other, fullgraph=True, backend='aot_eager')
    expected, state = train_step(model, x)
    grads, _ = train_step(compiled, x)
    for name, grad in expected.items():
        torch.testing.assert_close(grads[f'_orig_mod.{name}'], grad, rtol=1e-3,
                                   atol=1e-5)
    for name, value in other.state_dict().items():  # statistics are updated once
        torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-5)
    captured = torch.compile(other.eval(), fullgraph=True, backend='eager')
    with torch.no_grad():
        assert relative_error(captured(x), other(x)) < 1e-5


@pytest.mark.skipif(torch.__version__ < '2.6', reason='exporting needs PyTorch 2.6')
@pytest.mark.parametrize('cls, cfg', [
    pytest.param(*param.values, id=param.id,
                 marks=[pytest.mark.slow] * (param.id == 'SOFT-True'
                                             or param.id.endswith('softmax')))
    for param in SHALLOW])
def test_exports_with_dynamic_size(cls, cfg, tmp_path):
    model = build(cls, cfg, pretrain_size=224).eval()
    auto = torch.export.Dim.AUTO
    # This cache doubles the time with dynamic sizes
    with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
        exported = torch.export.export(
            model, (image(2, 96, 160), ),
            dynamic_shapes=({0: auto, 2: auto, 3: auto}, ))
        runs = [exported.module()]
        if (cls, cfg) in ONNX:
            runs.append(run_onnx(exported, tmp_path / 'model.onnx'))
    for batch, height, width in ((2, 96, 160), (1, 75, 99), (3, 256, 288)):
        x = image(batch, height, width)
        with torch.no_grad():
            expected = model(x)
            for run in runs:  # a hash bit of EcoFormer may flip: few values differ
                errors = [float((a - b).norm() / b.norm())
                          for a, b in zip(run(x), expected)]
                assert max(errors) < 1e-4, errors


def run_onnx(exported, path):
    """Export on to ONNX; returns a function that runs the file."""
    ort = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    torch.onnx.export(exported, (image(2, 96, 160), ), path, dynamo=True, verbose=False,
                      optimize=False,  # takes long; tests/deploy has it
                      dynamic_shapes=({0: 'batch', 2: 'height', 3: 'width'}, ))
    session = ort.InferenceSession(path)
    name = session.get_inputs()[0].name
    return lambda x: map(torch.from_numpy, session.run(None, {name: x.numpy()}))
