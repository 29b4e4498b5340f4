"""The repairs of mm_efficient.compat, each against an independent reference."""
import importlib
import os
import os.path as osp
import subprocess
import sys
from importlib.machinery import PathFinder

import numpy as np
import pytest
import torch
from mmcv import ops
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from torch import nn

from mm_efficient import compat

# ------------------------------------------------------ the stand-in extension

needs_stand_in = pytest.mark.skipif(
    getattr(sys.modules.get('mmcv._ext'), '__loader__', None) is not compat.FINDER,
    reason='mmcv is installed with its compiled operators')


@needs_stand_in
@pytest.mark.parametrize('call, name', [
    (lambda: ops.tin_shift(torch.rand(1, 4, 4, 2), torch.zeros(1, 4).int()),
     'tin_shift_forward'),
    (lambda: ops.softmax_focal_loss(torch.rand(2, 3), torch.tensor([0, 1])),
     'softmax_focal_loss_forward'),
    (lambda: ops.roi_pool(torch.rand(1, 1, 8, 8), torch.zeros(1, 5), 2),
     'roi_pool_forward'),
])
def test_other_operators_say_what_to_install(call, name):
    with pytest.raises(NotImplementedError, match=f"'{name}'.*installation.html"):
        call()


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
    monkeypatch.setattr(mmcv, '__path__', [str(tmp_path), *mmcv.__path__])
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


@pytest.mark.parametrize('name', [
    'retinanet/retinanet_r18_fpn_1x_coco',
    'mask_rcnn/mask-rcnn_r50_fpn_1x_coco',
    'vfnet/vfnet_r50_fpn_1x_coco',  # deform_conv2d
    'dyhead/atss_r50_fpn_dyhead_1x_coco',  # modulated_deform_conv2d
    # masked_conv2d, which a compiled mmcv has for GPUs only
    pytest.param('guided_anchoring/ga-retinanet_r50_fpn_1x_coco', marks=needs_stand_in),
    'pisa/retinanet-r50_fpn_pisa_1x_coco',  # nms_match
])
def test_stock_detectors_train_and_predict(name, default_scope):
    mmdet = pytest.importorskip('mmdet')
    from mmdet.registry import MODELS
    from mmdet.utils import register_all_modules
    register_all_modules(init_default_scope=False)
    default_scope('mmdet')
    configs = osp.join(osp.dirname(mmdet.__file__), '.mim', 'configs')
    cfg = Config.fromfile(osp.join(configs, f'{name}.py')).model
    cfg.backbone.update(depth=18, init_cfg=None)
    neck = cfg.neck[0] if isinstance(cfg.neck, list) else cfg.neck
    neck.in_channels = [64, 128, 256, 512]
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
        one = {key: values[:1] for key, values in batch.items()}
        predicted = model.eval().test_step(one)[0].pred_instances
    assert len(predicted) > 0
    if 'mask' in name:
        assert predicted.masks.shape == (len(predicted), 72, 48)


def test_segmentation_apis_import():
    pytest.importorskip('mmseg')
    apis = importlib.import_module('mmseg.apis')
    importlib.import_module('mmseg.models')
    assert callable(apis.init_model)


# --------------------------------------------------------------- mmpretrain


def test_a_transformers_that_is_too_recent_is_left_alone(tmp_path):
    """MMPretrain's multi-modal models cannot be imported with it."""
    (tmp_path / 'transformers').mkdir()
    (tmp_path / 'transformers' / '__init__.py').touch()
    (tmp_path / 'transformers' / 'modeling_utils.py').write_text(
        'class PreTrainedModel: pass')
    info = tmp_path / 'transformers-5.17.0.dist-info'
    info.mkdir()
    (info / 'METADATA').write_text('Name: transformers\nVersion: 5.17.0\n')
    code = ('from mmpretrain.utils.dependency import satisfy_requirement as has\n'
            'import mm_efficient\n'
            'from mmpretrain.registry import MODELS\n'
            'assert has("transformers>=4.28") and MODELS.get("SOFT")\n'
            'try:\n    MODELS.build(dict(type="Blip2VQA"))\n'
            'except ImportError as error:\n    print(error)')
    path = os.pathsep.join([str(tmp_path), os.environ['PYTHONPATH']])
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True,
                          env=dict(os.environ, PYTHONPATH=path))
    assert 'requires extra multi-modal dependencies' in done.stdout, done.stderr


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
