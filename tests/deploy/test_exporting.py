"""Exports of every family and task, compared with PyTorch, and errors."""
import copy
import json

import pytest
import torch
from ml_program import compute
from mmengine.registry import MODELS
from small_models import small_images, small_model

from mm_efficient.deploy import exporting
from mm_efficient.deploy.exporting import (
    SUFFIXES,
    check_format,
    export,
    load_exported,
)
from mm_efficient.deploy.models import deploy_model
from mm_efficient.deploy.verification import measure_parity, predict
from mm_efficient.errors import ExecutionError, InputError
from mm_efficient.models import LowFormer

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')
pytestmark = pytest.mark.skipif(torch.__version__ < '2.6',
                                reason='exporting needs PyTorch 2.6')

# Exporting is slow: every family, task and format once, with one block per stage.
# test_contract.py exports all backbones, test_operators.py NMS and RoIAlign in every
# format, tests/tools/test_export.py a classifier to ONNX.
EXPORTS = [
    pytest.param('det/lowformer_b0_maskrcnn_1x', 'onnx', marks=pytest.mark.slow),
    pytest.param('seg/swiftformer_xs_upernet_160k', 'onnx', marks=pytest.mark.slow),
    pytest.param('cls/ecoformer_pvt_b0_30e', 'onnx', marks=pytest.mark.slow),
    pytest.param('cls/reduceformer_b1_300e', 'onnx', marks=pytest.mark.slow),
    ('seg/swiftformer_xs_fpn_40k', 'onnx'),
    ('det/soft_tiny_retinanet_1x', 'torchscript'),
    ('cls/ecoformer_twins_s_30e', 'torchscript'),
    ('cls/reduceformer_b1_300e', 'torch-export'),
]


@pytest.mark.parametrize('name, format', EXPORTS)
def test_parity_with_pytorch(name, format, tmp_path):
    model, path = small_model(name), tmp_path / f'model{SUFFIXES[format]}'
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = export(model, path, small_images(), format=format)
    assert [each.shape for each in result.parity] == [(2, 3, 96, 128),
                                                          (1, 3, 75, 161)]
    for each in result.parity:
        found = each.metrics
        if name.startswith('seg'):
            assert found['classes'] > 1 and found['equal pixels'] > 0.999
            continue
        assert found['scores'] < 1e-4
        if name.startswith('det'):
            assert found['boxes'] > 5 and found['pixels'] < 0.01
    # The model is unchanged, and the file loads on its own
    assert all(torch.equal(value, before[key])
               for key, value in model.state_dict().items())
    assert list(tmp_path.iterdir()) == [path]
    x = torch.cat([small_images()[1]] * 3)  # another batch
    assert measure_parity(load_exported(path, format), x, predict(model, x)).passed


@pytest.mark.parametrize('name', ['cls/soft_tiny_300e',
                                  'det/lowformer_b0_retinanet_1x'])
def test_torchscript_follows_the_device_of_its_input(name, tmp_path):
    path = tmp_path / 'model.pt'
    export(small_model(name), path, small_images()[:1], format='torchscript')
    graph = torch.jit.load(path).inlined_graph
    fixed = [node for node in graph.findAllNodes('prim::Constant')
             if node.output().type().kind() == 'DeviceObjType']
    assert not fixed and graph.findAllNodes('prim::device')


def test_model_on_another_device(tmp_path, monkeypatch):
    """A copy on the CPU is exported; the model stays where it is."""
    model = small_backbone()
    weights = copy.deepcopy(model.state_dict())
    model.to('meta')  # a device without values: the copy gets them

    def cpu(self):
        self.to_empty(device='cpu').load_state_dict(weights)
        return self
    monkeypatch.setattr(torch.nn.Module, 'cpu', cpu)
    images = [(batch - 128) / 64 for batch in small_images()]
    result = export(model, tmp_path / 'a.pt', images, format='torchscript',
                    backbone=True)
    assert [each.passed for each in result.parity] == [True, True]
    assert all(parameter.is_meta for parameter in model.parameters())


def test_backbone_of_another_library_with_metadata(tmp_path):
    import onnx
    model = MODELS.build(dict(type='mmpretrain.ResNet', depth=18, stem_channels=8,
                              base_channels=8, out_indices=(1, 3)))
    path = tmp_path / 'backbone.onnx'
    batches = [(images - 128) / 64 for images in small_images()]
    result = export(model, path, batches, backbone=True,
                    metadata=dict(classes=['a', 'b'], input='normalised'))
    assert [len(each.metrics) for each in result.parity] == [2, 2]
    assert max(value for each in result.parity
               for value in each.metrics.values()) < 1e-5
    file = onnx.load(path)
    properties = {each.key: each.value for each in file.metadata_props}
    assert json.loads(properties['classes']) == ['a', 'b']
    assert properties['input'] == 'normalised'
    assert [node.name for node in file.graph.output] == ['feat1', 'feat3']
    free = [d.dim_param for d in file.graph.input[0].type.tensor_type.shape.dim]
    assert free == ['batch', '', 'height', 'width']
    assert sum(result.operators.values()) == len(file.graph.node)
    assert 'BatchNormalization' not in result.operators


def small_backbone():
    return LowFormer({**LowFormer.ARCHS['b0'], 'depths': [1, 1, 1, 1]}).eval()


def test_weights_in_a_second_file(tmp_path, monkeypatch):
    """As PyTorch stores those of large models: both files can be moved."""
    import onnx
    monkeypatch.setattr('torch.onnx._internal.exporter._onnx_program.'
                        '_LARGE_MODEL_THRESHOLD', 1000)
    images = torch.zeros(1, 3, 64, 96)
    export(small_backbone(), tmp_path / 'a.onnx', [images], backbone=True, static=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ['a.onnx', 'a.onnx.data']
    moved = tmp_path / 'moved'
    moved.mkdir()
    for path in tmp_path.glob('a.*'):
        path.rename(moved / path.name)
    onnx.checker.check_model(moved / 'a.onnx')
    assert len(load_exported(moved / 'a.onnx', 'onnx')(images)) == 1


def test_modes_of_the_caller_do_not_matter(tmp_path):
    model, images = small_backbone(), torch.zeros(1, 3, 64, 96)
    with torch.inference_mode(), torch.autocast('cpu', torch.bfloat16):
        export(model, tmp_path / 'a.pt', [images], format='torchscript', backbone=True)
    assert load_exported(tmp_path / 'a.pt', 'torchscript')(images)[0].isfinite().all()
    with pytest.raises(InputError, match='in torch.bfloat16; expected float32'):
        export(model.bfloat16(), tmp_path / 'b.pt', [images], format='torchscript',
               backbone=True)


def test_static(tmp_path):
    import onnx
    model = small_model('cls/lowformer_b0_300e')
    result = export(model, tmp_path / 'a.onnx', small_images(), static=True,
                    fused=False, opset=18)
    assert [each.shape for each in result.parity] == [(1, 3, 96, 128)]
    assert result.fusion is None
    file = onnx.load(tmp_path / 'a.onnx')
    assert {opset.version for opset in file.opset_import if not opset.domain} == {18}
    assert 'Erf' in result.operators and 'Gelu' not in result.operators
    graph = file.graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [
        1, 3, 96, 128]


def test_opset_that_pytorch_does_not_write(tmp_path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.GELU())
    model.out_indices = (0, )
    with pytest.raises(ExecutionError, match='converted to opset 6: PyTorch wrote'):
        export(model, tmp_path / 'a.onnx', small_images(), backbone=True, static=True,
               fused=False, opset=6)
    assert not list(tmp_path.iterdir())


# What counts as a difference for detectors: test_comparison_sees_every_difference
@pytest.mark.parametrize('name', ['cls/lowformer_b0_300e', 'seg/lowformer_b0_fpn_80k'])
def test_wrong_predictions_are_not_kept(name, tmp_path, monkeypatch):
    model, path = small_model(name), tmp_path / 'model.pt'
    path.write_text('old')
    write = exporting._write

    def spoil(module, *args):
        for parameter in module.parameters():
            if parameter.dim() > 1:
                parameter.data *= 1.1
        write(module, *args)
    monkeypatch.setattr(exporting, '_write', spoil)
    with pytest.raises(ExecutionError, match='not predict.*\n  2 x 3 x 96 x 128: '):
        export(model, path, small_images(), format='torchscript')
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == 'old'


def test_core_ml(tmp_path):
    pytest.importorskip('coremltools')
    model, path = small_model('cls/lowformer_b0_300e'), tmp_path / 'a.mlpackage'
    result = export(model, path, small_images(), format='coreml')
    assert not result.parity and result.fusion.folded > 5
    images = small_images()[0][:1]
    scores = compute(path, {'input': images})['output']
    torch.testing.assert_close(scores[0], predict(model, images)[0].pred_score.double(),
                               rtol=1e-3, atol=1e-6)
    with pytest.raises(ExecutionError, match='exported to Core ML: .*padded_nms'):
        export(small_model('det/lowformer_b0_retinanet_1x'), path, small_images(),
               format='coreml')


def test_what_cannot_be_run_or_written(tmp_path, monkeypatch):
    model = small_model('cls/lowformer_b0_300e')
    batches = [small_images()[0], torch.zeros(1, 3, 16, 16)]
    with pytest.raises(ExecutionError, match='cannot run images of 1 x 3 x 16 x 16 in'):
        export(model, tmp_path / 'a.pt', batches, format='torchscript')
    (tmp_path / 'file').touch()
    with pytest.raises(InputError, match='folder of .* cannot be created'):
        export(model, tmp_path / 'file' / 'a.pt', batches, format='torchscript')

    def fail(x):
        raise RuntimeError('Guard failed\nand more')
    monkeypatch.setattr(exporting, 'load_exported', lambda *args: fail)
    with pytest.raises(ExecutionError, match='exported model cannot run images of 2 x '
                                             '3 x 96 x 128, .* RuntimeError: Guard'):
        export(model, tmp_path / 'a.pt', small_images(), format='torchscript')
    assert [path.name for path in tmp_path.iterdir()] == ['file']


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    model = small_model('cls/lowformer_b0_300e')

    def fail(*args, **kwargs):
        raise RuntimeError('no such operator\nand more')
    monkeypatch.setattr(torch.jit, 'trace', fail)
    with pytest.raises(ExecutionError, match='to torchscript: RuntimeError: no such'):
        export(model, tmp_path / 'a.pt', small_images(), format='torchscript')
    assert not list(tmp_path.iterdir())


def test_formats_are_checked(monkeypatch):
    with pytest.raises(InputError, match="unknown format 'caffe'; expected one of on"):
        check_format('caffe', 'a.caffe')
    with pytest.raises(InputError, match='float16 is available in format coreml only'):
        check_format('onnx', 'a.onnx', fp16=True)
    with pytest.raises(InputError, match='opset is for format onnx only, got coreml'):
        check_format('coreml', 'a.mlpackage', opset=18)
    with pytest.raises(InputError, match=r'format onnx must end with \.onnx'):
        check_format('onnx', 'a.pt')
    monkeypatch.setitem(__import__('sys').modules, 'onnxscript', None)
    with pytest.raises(InputError, match=r"needs onnxscript.*'mm-efficient\[onnx\]'"):
        check_format('onnx', 'a.onnx')


def test_comparison_sees_every_difference():
    model = small_model('det/lowformer_b0_maskrcnn_1x')
    images = small_images()[1]
    expected = predict(model, images)
    truth = expected[0].pred_instances
    with torch.no_grad():
        outputs = deploy_model(model)(images)
    n = len(truth)

    def changed(index, change):
        copies = [output.clone() for output in outputs]
        change(copies[index])
        return measure_parity(lambda x: copies, images, expected)
    assert changed(0, lambda dets: None).passed

    def away(dets):
        dets[:, :n, 0] += 1

    def unsure(dets):
        dets[:, :n, 4] -= 0.01

    def other(labels):
        labels[:, :n] = (labels[:, :n] + 1) % 7

    def none(labels):
        labels[:] = -1

    def empty(masks):
        masks[:] = 0
    for index, change, figure in ((0, away, 'matched'), (0, unsure, 'matched'),
                                  (1, other, 'matched'), (1, none, 'matched'),
                                  (2, empty, 'mask IoU')):
        result = changed(index, change)
        assert not result.passed and result.metrics[figure] < 0.5, change


def test_feature_maps_of_zeros_agree():
    from mm_efficient.deploy.verification import measure_parity
    images, zeros = torch.zeros(1, 3, 32, 32), torch.zeros(1, 4, 8, 8)
    assert measure_parity(lambda x: [zeros], images, [zeros]).passed
    assert not measure_parity(lambda x: [zeros + 1], images, [zeros]).passed
    nan = zeros.fill_(float('nan'))
    assert not measure_parity(lambda x: [nan], images, [nan]).passed
