"""NMS and RoIAlign: as in MMCV and MMDetection, and the same in ONNX; others."""
import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import batched_nms
from mmdet.models import SingleRoIExtractor
from torch import nn

from mm_efficient.deploy.detectors import extract_roi_features, grouped_nms
from mm_efficient.deploy.operators import (
    SingleOperators,
    onnx_translations,
    padded_nms,
    pyramid_roi_align,
)

STRIDES = (4, 8, 16, 32)


def boxes(batch, number, seed=0, size=300):
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(batch, number, 2, generator=generator) * size
    sides = torch.rand(batch, number, 2, generator=generator) * size / 3
    return torch.cat([corners, corners + sides], -1)


def scores(batch, number, seed=0):
    """Distinct scores; about a third are 0, without a box."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(batch, number, generator=generator).argsort(-1)
    return (order.float() / number - 0.3).clamp(min=0)


@pytest.fixture
def extractor():
    return SingleRoIExtractor(
        roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
        out_channels=3, featmap_strides=list(STRIDES))


@pytest.fixture
def maps():
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 3, 512 // stride, 480 // stride, generator=generator)
            for stride in (*STRIDES, 64)]


def rois():
    """Of every size, including an empty one and one that fills the image."""
    parts = [boxes(2, 20, seed, size) for seed, size in enumerate((40, 200, 460))]
    return torch.cat([*parts, torch.zeros(2, 1, 4),
                      torch.tensor([0., 0., 224., 224.]).expand(2, 1, 4)], 1)


def test_grouped_nms_is_batched_nms_of_mmcv():
    x, s = boxes(3, 200), scores(3, 200)
    s[2] = 0  # an image without boxes
    groups = torch.arange(200).expand(3, -1) % 4
    dets, kept = grouped_nms(x, s, groups, dict(type='nms', iou_threshold=0.3), 50)
    numbers = []
    for i in range(3):
        valid = s[i] > 0
        numbers.append(0)
        if valid.any():
            expected, index = batched_nms(x[i][valid], s[i][valid], groups[i][valid],
                                          dict(type='nms', iou_threshold=0.3))
            numbers[-1] = min(len(index), 50)
            assert torch.equal(dets[i, :numbers[-1]], expected[:50])
            assert torch.equal(kept[i, :numbers[-1]], groups[i][valid][index[:50]])
        assert (kept[i, numbers[-1]:] == -1).all()
        assert (dets[i, numbers[-1]:] == 0).all()
    assert numbers[0] == 50 and numbers[2] == 0  # too many, none


def test_class_agnostic_nms():
    x = torch.tensor([[[0., 0., 10., 10.], [0., 0., 10., 9.]]])
    s, groups = torch.tensor([[0.5, 0.6]]), torch.tensor([[0, 1]])
    for agnostic, number in ((False, 2), (True, 1)):
        nms = dict(iou_threshold=0.5, class_agnostic=agnostic)
        _, kept = grouped_nms(x, s, groups, nms, 2)
        assert (kept >= 0).sum() == number


def test_roi_features_are_those_of_mmdetection(extractor, maps):
    x = rois()
    indexed = torch.cat([torch.cat([torch.full((x.shape[1], 1), float(i)), x[i]], 1)
                         for i in range(2)])
    used = extractor.map_roi_levels(indexed, 4).unique()
    assert used.tolist() == [0, 1, 2]  # no RoI on the coarsest feature map
    assert torch.equal(extract_roi_features(extractor, maps, x),
                       extractor(maps[:4], indexed))


class NMS(nn.Module):

    def forward(self, x, s):
        return padded_nms(x, s, 0.3, 20)


class RoIFeatures(nn.Module):

    def forward(self, a, b, rois, levels):
        return pyramid_roi_align([a, b], rois, levels, [1 / 4, 1 / 8], 7, 0)


def onnx_session(module, x, free, path):
    ort = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    torch.onnx.export(module, x, path, dynamo=True, verbose=False,
                      dynamic_shapes=free,
                      custom_translation_table=onnx_translations())
    session = ort.InferenceSession(path)
    names = [node.name for node in session.get_inputs()]
    return lambda *x: torch.from_numpy(session.run(None, {
        name: each.numpy() for name, each in zip(names, x)})[0])


def test_nms_in_onnx(tmp_path):
    x, s = boxes(2, 100), scores(2, 100)
    run = onnx_session(NMS(), (x, s), ({0: 'b', 1: 'n'}, {0: 'b', 1: 'n'}),
                       tmp_path / 'a.onnx')
    for batch, number in ((2, 100), (1, 300), (3, 7)):
        x, s = boxes(batch, number, seed=5), scores(batch, number, seed=6)
        s[-1, :] *= batch < 3  # the last image has no boxes
        expected = padded_nms(x, s, 0.3, 20)
        assert torch.equal(run(x, s), expected)
    assert (expected[:2] >= 0).any() and (expected[2] == -1).all()


def test_roi_align_in_onnx(maps, tmp_path):
    x = torch.cat([torch.zeros(62, 1), rois()[0]], 1)
    x[::3, 0] = 1
    levels = torch.arange(62) % 2
    free = (None, None, {0: 'k'}, {0: 'k'})
    run = onnx_session(RoIFeatures(), (*maps[:2], x, levels), free, tmp_path / 'a.onnx')
    for each in (levels, 1 - levels, torch.zeros_like(levels)):
        expected = pyramid_roi_align(maps[:2], x, each, [1 / 4, 1 / 8], 7, 0)
        torch.testing.assert_close(run(*maps[:2], x, each), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize('module, x', [
    (NMS(), (boxes(2, 100), scores(2, 100))),
    (RoIFeatures(), (torch.randn(2, 3, 50, 60), torch.randn(2, 3, 25, 30),
                 torch.cat([torch.ones(62, 1), rois()[0]], 1),
                 torch.arange(62) % 2))], ids=['nms', 'rois'])
def test_torchscript_and_exported_programs(module, x, tmp_path):
    expected = module(*x)
    torch.jit.trace(module, x, check_trace=False).save(tmp_path / 'a.pt')
    assert torch.equal(torch.jit.load(tmp_path / 'a.pt')(*x), expected)
    program = torch.export.export(module, x)
    torch.export.save(program, tmp_path / 'a.pt2')
    assert torch.equal(torch.export.load(tmp_path / 'a.pt2').module()(*x), expected)


class Resized(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(7)

    def forward(self, x, y):
        return F.interpolate(self.norm(x), y.shape[2:], mode='bilinear')


@pytest.mark.skipif(torch.__version__ < '2.6', reason='exporting needs PyTorch 2.6')
@pytest.mark.parametrize('dynamic', [True, False])
def test_single_operators_where_sizes_are_dynamic(dynamic):
    x, y, model = torch.rand(2, 3, 6, 7), torch.rand(1, 1, 5, 9), Resized()
    auto = torch.export.Dim.AUTO
    with SingleOperators():
        program = torch.export.export(model, (x, y), dynamic_shapes=(
            {0: auto}, {2: auto, 3: auto}) if dynamic else None)
    called = {str(node.target) for node in program.graph.nodes}
    assert dynamic == ({'mm_efficient.layer_norm.default',
                        'mm_efficient.resize_bilinear.default'} <= called)
    if dynamic:
        x, y = x.repeat(2, 1, 1, 1), y[..., :3]
    torch.testing.assert_close(program.module()(x, y), model(x, y))
