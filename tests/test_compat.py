"""The repairs of mm_efficient.compat, each against an independent reference."""
import importlib
import json
import os.path as osp
import sys
from importlib.machinery import PathFinder
from pathlib import Path

import numpy as np
import pytest
import torch
from mmcv import ops
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from mm_efficient import compat

RECORDED = Path(__file__).parent / 'reference' / 'mmcv_ops'
CASES = json.loads((RECORDED / 'cases.json').read_text())
HALF = [torch.float16, torch.bfloat16]


@pytest.fixture(scope='module')
def arrays():
    with np.load(RECORDED / 'cases.npz') as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


def cases(op):
    return [pytest.param(case, id=str(case['case'])) for case in CASES
            if case['op'] == op]


def random_boxes(num, size=60, seed=0):
    """Boxes with whole coordinates, so that overlaps are simple fractions."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(size, (num, 2), generator=generator)
    extent = torch.randint(1, 20, (num, 2), generator=generator)
    return torch.cat([corners, corners + extent], dim=1).float()


# ------------------------------------------------------------- operators: nms


@pytest.mark.parametrize('case', cases('nms'))
def test_nms_as_recorded(case, arrays):
    name = case['case']
    dets, keep = ops.nms(arrays[f'{name}/boxes'], arrays[f'{name}/scores'],
                         case['iou_threshold'], case['offset'])
    assert torch.equal(keep, arrays[f'{name}/keep'])
    assert torch.equal(dets, arrays[f'{name}/dets'])


@pytest.mark.parametrize('case', cases('batched_nms'))
def test_batched_nms_as_recorded(case, arrays):
    boxes, scores, idxs, dets, keep = (
        arrays[f"{case['case']}/{name}"]
        for name in ('boxes', 'scores', 'idxs', 'dets', 'keep'))
    result = ops.batched_nms(boxes, scores, idxs, case['nms_cfg'])
    assert torch.equal(result[1], keep)
    assert torch.equal(result[0], dets)


def greedy_nms(boxes, scores, threshold, offset):
    """The definition, in NumPy's float32 as in mmcv's C++."""
    boxes, threshold = boxes.numpy(), np.float32(threshold)
    left = list(scores.argsort(descending=True).tolist())
    keep = []
    while left:
        best = left.pop(0)
        keep.append(best)
        size = boxes[:, 2:] - boxes[:, :2] + np.float32(offset)
        corner = np.minimum(boxes[best, 2:], boxes[:, 2:])
        inner = corner - np.maximum(boxes[best, :2], boxes[:, :2])
        inner = np.maximum(inner + np.float32(offset), 0).prod(1)
        union = size[best].prod() + size.prod(1) - inner
        left = [i for i in left if not inner[i] / union[i] > threshold]
    return keep


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5, 0.7])
def test_nms_is_greedy(threshold, offset):
    boxes = random_boxes(150)
    scores = torch.randperm(150, generator=torch.Generator().manual_seed(1)) / 150
    keep = ops.nms(boxes, scores, threshold, offset)[1]
    assert keep.tolist() == greedy_nms(boxes, scores, threshold, offset)


def test_nms_compares_with_the_threshold_in_float32():
    boxes = torch.tensor([[0., 0, 10, 10], [0, 0, 3, 10]])  # overlap exactly 0.3
    keep = ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.3)[1]
    assert keep.tolist() == [0, 1]


@pytest.mark.parametrize('dtype', HALF)
def test_nms_in_half_precision_is_that_of_the_rounded_boxes(dtype):
    boxes, scores = random_boxes(80).to(dtype), (torch.arange(80) / 80).to(dtype)
    dets, keep = ops.nms(boxes, scores, 0.4)
    order = ops.nms(boxes.float(), scores.float(), 0.4)[1]
    assert torch.equal(scores[keep], scores[order])  # ties may change places
    assert dets.dtype == dtype and len(keep) < 80


# ------------------------------------------------------- operators: roi_align


@pytest.mark.parametrize('case', cases('roi_align'))
def test_roi_align_as_recorded(case, arrays):
    recorded = {name: arrays[f"{case['case']}/{name}"]
                for name in ('input', 'rois', 'output', 'grad_output', 'grad_input')}
    features = recorded['input'].clone().requires_grad_()
    output = ops.roi_align(features, recorded['rois'], case['output_size'],
                           case['spatial_scale'], case['sampling_ratio'],
                           case['pool_mode'], case['aligned'])
    output.backward(recorded['grad_output'])
    torch.testing.assert_close(output, recorded['output'], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        features.grad, recorded['grad_input'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_gradient_in_float64(sampling_ratio, aligned):
    torch.manual_seed(0)
    features = torch.rand(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.2, 2.1, 20.3, 17.9], [1, -3, 0.4, 9.7, 30]]).double()
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_align(x, rois, (2, 3), 0.25, sampling_ratio, 'avg', aligned),
        features)


@pytest.mark.parametrize('dtype', HALF)
def test_roi_align_in_half_precision_computes_in_float32(dtype):
    torch.manual_seed(0)
    features = torch.rand(1, 3, 12, 12).to(dtype)
    rois = torch.tensor([[0, 3., 4, 40, 36]]).to(dtype)
    grads = []
    for cast in (dtype, torch.float32):
        leaf = features.to(cast, copy=True).requires_grad_()
        output = ops.roi_align(leaf, rois.to(cast), (7, 7), 0.25, 0, 'avg', True)
        output.backward(torch.ones_like(output))
        assert output.dtype == leaf.grad.dtype == cast
        grads.append((output.detach(), leaf.grad))
    for half, full in zip(*grads):
        assert torch.equal(half, full.to(dtype))


def test_roi_align_without_rois():
    features = torch.rand(2, 3, 8, 8, requires_grad=True)
    output = ops.roi_align(features, torch.zeros(0, 5), (7, 7), 0.25, 0, 'avg', True)
    assert output.shape == (0, 3, 7, 7)
    output.sum().backward()
    assert torch.equal(features.grad, torch.zeros(2, 3, 8, 8))


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_roi_align_is_a_kernel_on_cuda(deterministic, monkeypatch):
    """``torchvision.ops.roi_align`` is Python then, and samples whole maps per RoI."""
    calls = []
    module = importlib.import_module('torchvision.ops.roi_align')
    monkeypatch.setattr(module, '_roi_align', lambda *args: calls.append(args))
    monkeypatch.setattr(
        module, 'is_compile_supported', lambda device: True, raising=False)
    with FakeTensorMode():
        features = torch.rand(1, 2, 8, 8, device='cuda')
        output = torch.empty(3, 2, 7, 7, device='cuda')
        compat.roi_align_forward(
            features, torch.rand(3, 5, device='cuda'), output, None, None, 7, 7, 0.25,
            0, 1, True)
    assert not calls


# ------------------------------------------------------ operators: focal loss


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.5, 0.6), (0.0, 0.5)])
def test_focal_loss_is_mmdets_own_in_python(gamma, alpha):
    focal_loss = pytest.importorskip('mmdet.models.losses.focal_loss')
    torch.manual_seed(0)
    logits = (3 * torch.randn(40, 5)).double().requires_grad_()
    target = torch.randint(6, (40, ))  # 5 is background
    weight = torch.rand(40, 5).double()
    one_hot = nn.functional.one_hot(target, 6)[:, :5]
    expected = focal_loss.py_sigmoid_focal_loss(
        logits, one_hot, gamma=gamma, alpha=alpha, reduction='none')
    expected_grad, = torch.autograd.grad((expected * weight).sum(), logits)
    loss = ops.sigmoid_focal_loss(logits, target, gamma, alpha, None, 'none')
    grad, = torch.autograd.grad((loss * weight).sum(), logits)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('reduction, divisor', [('mean', 4), ('sum', 1)])
def test_focal_loss_class_weights_and_reduction(reduction, divisor):
    logits = torch.randn(4, 3, requires_grad=True)
    target = torch.tensor([0, 2, 3, 1])
    weight = torch.tensor([2., 3, 5])
    rows = ops.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
    # A sample's row is weighted by its class; background by one.
    expected = (rows * torch.tensor([[2.], [5], [1], [3]])).sum() / divisor
    expected_grad, = torch.autograd.grad(expected, logits)
    loss = ops.sigmoid_focal_loss(logits, target, 2., .25, weight, reduction)
    grad, = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize('dtype', [torch.float32, *HALF])
@pytest.mark.parametrize('gamma', [0.5, 2.0])
def test_focal_loss_of_confident_logits_is_finite(gamma, dtype):
    logits = torch.tensor([[100., -100], [-100, 100]], dtype=dtype,
                          requires_grad=True)
    target = torch.tensor([0, 0])  # first row right, second wrong
    loss = ops.sigmoid_focal_loss(logits, target, gamma, .25, None, 'none')
    loss.sum().backward()
    expected = torch.tensor([[0., 0], [25, 75]], dtype=dtype)
    assert torch.equal(loss, expected) and loss.dtype == dtype
    slope = torch.tensor([[0., 0], [-.25, .75]], dtype=dtype)
    assert torch.equal(logits.grad, slope)


# ------------------------------------------------------ the stand-in extension

needs_stand_in = pytest.mark.skipif(
    getattr(sys.modules.get('mmcv._ext'), '__loader__', None) is not compat.FINDER,
    reason='mmcv is installed with its compiled operators')


@needs_stand_in
@pytest.mark.parametrize('call, name', [
    (lambda: ops.soft_nms(random_boxes(3), torch.rand(3), 0.5), 'softnms'),
    (lambda: ops.softmax_focal_loss(torch.rand(2, 3), torch.tensor([0, 1])),
     'softmax_focal_loss_forward'),
    (lambda: ops.roi_pool(torch.rand(1, 1, 8, 8), torch.zeros(1, 5), 2),
     'roi_pool_forward'),
])
def test_other_operators_say_what_to_install(call, name):
    with pytest.raises(NotImplementedError, match=f"'{name}'.*installation.html"):
        call()


@needs_stand_in
def test_max_pooling_is_refused():
    with pytest.raises(NotImplementedError, match="got 'max'"):
        ops.roi_align(torch.rand(1, 1, 8, 8), torch.zeros(1, 5), 2, 1., 0, 'max')


@needs_stand_in
@pytest.mark.parametrize('rank, lines', [('0', 1), ('1', 0)])
def test_one_line_is_logged(rank, lines, monkeypatch):
    logged = []
    monkeypatch.setenv('RANK', rank)
    monkeypatch.setattr(compat, 'print_log', lambda text, logger: logged.append(text))
    monkeypatch.delitem(sys.modules, 'mmcv._ext')
    importlib.import_module('mmcv._ext')
    importlib.import_module('mmcv._ext')
    assert len(logged) == lines


@needs_stand_in
def test_environment_report_says_so():
    from mmcv.utils import collect_env
    assert collect_env()['MMCV Compiler'] == 'n/a (torchvision operators)'


def test_a_compiled_extension_wins(tmp_path, monkeypatch):
    import mmcv
    (tmp_path / '_ext.py').write_text('compiled = True')
    monkeypatch.delitem(sys.modules, 'mmcv._ext', raising=False)
    monkeypatch.setattr(mmcv, '__path__', [*mmcv.__path__, str(tmp_path)])
    importlib.invalidate_caches()
    assert importlib.import_module('mmcv._ext').compiled
    # monkeypatch puts back only what it saw; forget the fake.
    monkeypatch.delitem(sys.modules, 'mmcv._ext')


def test_applying_twice_adds_one_finder_behind_the_others():
    compat.apply()
    assert sys.meta_path.count(compat.FINDER) == 1
    assert sys.meta_path.index(compat.FINDER) > sys.meta_path.index(PathFinder)


# ------------------------------------------------------------ mmdet and mmseg


@pytest.fixture
def default_scope(monkeypatch):
    """Let a test choose the scope without leaving it to the next one."""
    monkeypatch.setattr(DefaultScope, '_instance_dict',
                        DefaultScope._instance_dict.copy())
    return lambda name: DefaultScope.get_instance(f'test-{name}', scope_name=name)


def detection_batch(num=2, size=96):
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData
    samples = []
    for _ in range(num):
        masks = np.zeros((1, size, size), np.uint8)
        masks[0, 10:60, 20:80] = 1
        shape = (size, size)
        sample = DetDataSample(metainfo=dict(
            img_shape=shape, batch_input_shape=shape, pad_shape=shape,
            ori_shape=(72, 48), scale_factor=(size / 48, size / 72)))
        sample.gt_instances = InstanceData(
            bboxes=torch.tensor([[20., 10, 80, 60]]), labels=torch.tensor([3]),
            masks=BitmapMasks(masks, size, size))
        sample.ignored_instances = InstanceData(
            bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return dict(inputs=[torch.randint(256, (3, size, size)).byte()
                        for _ in range(num)], data_samples=samples)


@pytest.mark.parametrize('name', ['retinanet/retinanet_r18_fpn_1x_coco',
                                  'mask_rcnn/mask-rcnn_r50_fpn_1x_coco'])
def test_stock_detectors_train_and_predict(name, default_scope):
    mmdet = pytest.importorskip('mmdet')
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    default_scope('mmdet')
    configs = osp.join(osp.dirname(mmdet.__file__), '.mim', 'configs')
    cfg = Config.fromfile(osp.join(configs, f'{name}.py')).model
    cfg.backbone.update(depth=18, init_cfg=None)
    cfg.neck.in_channels = [64, 128, 256, 512]
    torch.manual_seed(0)
    model = MODELS.build(cfg)
    batch = detection_batch()
    losses = model.train().forward(**model.data_preprocessor(batch, True), mode='loss')
    loss = model.parse_losses(losses)[0]
    loss.backward()
    assert loss.isfinite()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all()
               for parameter in model.parameters() if parameter.requires_grad)
    test_cfg = model.roi_head.test_cfg if 'roi_head' in cfg else \
        model.bbox_head.test_cfg
    test_cfg.score_thr = 0.
    with torch.no_grad():
        predicted = model.eval().test_step(batch)[0].pred_instances
    assert len(predicted) > 0
    if 'mask' in name:
        assert predicted.masks.shape == (len(predicted), 72, 48)


def test_segmentation_apis_import():
    pytest.importorskip('mmseg')
    apis = importlib.import_module('mmseg.apis')
    importlib.import_module('mmseg.models')
    assert callable(apis.init_model)


# -------------------------------------------------------- checkpoint loading


class Line(BaseModel):

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, inputs, mode='tensor'):
        inputs = torch.as_tensor(inputs).double()
        return dict(loss=((self.weight * inputs - 1)**2).sum())


def run(work_dir, epochs, resume_from=None):
    runner = Runner(
        Line(), work_dir=str(work_dir), resume=resume_from is not None,
        load_from=resume_from,
        experiment_name=f'{work_dir.name}-{epochs}',
        train_dataloader=dict(
            dataset=[dict(inputs=value) for value in (1., 2., 3.)], batch_size=1,
            sampler=dict(type='DefaultSampler', shuffle=False)),
        train_cfg=dict(by_epoch=True, max_epochs=epochs),
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=.02, momentum=.9)),
        param_scheduler=dict(type='ExponentialLR', gamma=.8, by_epoch=True),
        log_level='ERROR')
    runner.train()
    return runner


def test_a_training_resumes_from_its_own_checkpoint(tmp_path):
    whole = run(tmp_path / 'whole', epochs=4)
    resumed = run(tmp_path / 'resumed', epochs=4,
                  resume_from=str(tmp_path / 'whole' / 'epoch_2.pth'))
    assert resumed.iter == 12
    assert torch.equal(resumed.model.weight, whole.model.weight)
    for scalar in ('train/loss', 'train/lr'):  # epochs 1 and 2 come from the file
        histories = [runner.message_hub.get_scalar(scalar).data[0]
                     for runner in (whole, resumed)]
        assert len(histories[0]) == 12 and np.array_equal(*histories)


def test_load_checkpoint_reads_a_checkpoint_of_the_runner(tmp_path):
    trained = run(tmp_path, epochs=1)
    model = Line()
    checkpoint = load_checkpoint(model, str(tmp_path / 'epoch_1.pth'))
    assert torch.equal(model.weight, trained.model.weight)
    assert checkpoint['message_hub']['log_scalars']


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match='nowhere.pth'):
        CheckpointLoader.load_checkpoint(str(tmp_path / 'nowhere.pth'))
