import copy
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from mm_efficient.errors import InputError
from mm_efficient.models.soft.backbone import SOFT
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.model_checks import check_model, check_teacher, check_weights
from mm_efficient.runs.traversal import inner_model

CONFIGS = Path(__file__).parents[2] / 'configs'
DET, FPN = 'det/soft_tiny_maskrcnn_1x.py', 'seg/soft_tiny_fpn_80k.py'
UPERNET, CLS = 'seg/soft_tiny_upernet_160k.py', 'cls/soft_tiny_300e.py'


def load(name, **changes):
    cfg = Config.fromfile(CONFIGS / name)
    cfg.merge_from_dict({f'model.{key}': v for key, v in changes.items()})
    return cfg


# tests/configs compares the widths of all variants
SMALLEST = ('soft_tiny_[3frmu]', 'ecoformer_pvt_b0', 'ecoformer_twins_s',
            'lowformer_b0', 'swiftformer_xs', 'reduceformer_b1')


@pytest.mark.parametrize('name', sorted(
    str(path.relative_to(CONFIGS)) for variant in SMALLEST
    for path in CONFIGS.glob(f'[cds]*/{variant}*.py')))
def test_every_config_passes(name):
    check_model(load(name), pretrained=False)


# ------------------------------------------------- configs that the frameworks run

LIBRA, FASTER = ('libra_rcnn/libra-retinanet_r50_fpn_1x_coco.py',
                 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py')
STOCK = [('mmdet', name) for name in (
    LIBRA, FASTER, 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'mask2former/mask2former_r50_8xb2-lsj-50e_coco.py',
    'htc/htc_r50_fpn_1x_coco.py', 'dyhead/atss_r50_fpn_dyhead_1x_coco.py',
    'soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco.py')]
STOCK += [('mmseg', name) for name in (
    'ocrnet/ocrnet_r101-d8_4xb2-40k_cityscapes-512x1024.py',
    'point_rend/pointrend_r50_4xb2-80k_cityscapes-512x1024.py',
    'knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py',
    'sem_fpn/fpn_r50_4xb2-80k_cityscapes-512x1024.py')]
STOCK += [('mmpretrain', 'resnet/resnet50_8xb32_in1k.py')]


def stock(package, name):
    """A stock config with a backbone of ours that is as wide as ResNet-50."""
    root = Path(pytest.importorskip(package).__file__).parent
    cfg = load_config(Config.fromfile(root / '.mim/configs' / name))
    model = inner_model(cfg.model)
    model.pop('pretrained', None)
    model.backbone = dict(
        type='mmpretrain.SwiftFormer', output_norm=True,
        arch=dict(embed_dims=[256, 512, 1024, 2048], depths=[1, 1, 1, 1]),
        out_indices=model.backbone.get('out_indices', (0, 1, 2, 3)))
    return cfg, model


@pytest.mark.parametrize('package, name', STOCK)
def test_stock_configs_pass(package, name):
    cfg, model = stock(package, name)
    before = copy.deepcopy(cfg.to_dict())
    check_model(cfg, pretrained=False)
    assert cfg.to_dict() == before  # building changes some
    if 'mask2former' not in name:  # its head is not run
        model.backbone.arch.embed_dims = [256, 512, 1032, 2056]
        with pytest.raises(InputError, match='does not fit model.backbone'):
            check_model(cfg, pretrained=False)


def test_a_list_of_necks_and_a_wrapped_model():
    cfg, model = stock('mmdet', LIBRA)
    assert isinstance(model.neck, list)
    cfg.model = dict(type='DetTTAModel', tta_cfg=dict(), module=cfg.model)
    check_model(cfg, pretrained=False)
    model.neck[0].in_channels = [1, 2, 3, 4]
    with pytest.raises(InputError, match='model.neck .*does not fit'):
        check_model(cfg, pretrained=False)


def test_weights_of_a_model_inside_a_wrapper():
    from mm_efficient.runs.model_checks import build_on_meta
    cfg, model = stock('mmdet', FASTER)
    with DefaultScope.overwrite_default_scope('mmdet'):
        weights = build_on_meta(model).state_dict()
    cfg.model = dict(type='DetTTAModel', tta_cfg=dict(), module=cfg.model)
    check_weights(cfg, dict(state_dict=weights), 'x.pth')
    weights.popitem()
    with pytest.raises(InputError, match='1 tensors missing'):
        check_weights(cfg, dict(state_dict=weights), 'x.pth')


NEW_STYLE = """
from mmengine.config import read_base
from mmdet.datasets import CocoDataset
from mmdet.models import FPN, RetinaHead
from mmpretrain.models import ImageClassifier
from mm_efficient.engine import SeededSampler
from mm_efficient.models import SOFT
from mmdet.models.detectors import RetinaNet
from mmdet.evaluation import CocoMetric
from mmengine.dataset import DefaultSampler
from mmengine.runner import EpochBasedTrainLoop, TestLoop
from mmengine.optim import OptimWrapper
from torch.optim import AdamW

with read_base():
    from .base import *

model.update(dict(type=RetinaNet, backbone=dict(
    type=SOFT, arch='tiny', out_indices=(1, 2, 3))))
model.neck.update(dict(type=FPN, in_channels=[128, 320, 512], start_level=0))
train_dataloader = dict(
    batch_size=2, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=True),
    dataset=dict(type=CocoDataset, data_root=r'DATA', pipeline=[],
                 ann_file='annotations/instances_train2017.json',
                 data_prefix=dict(img='train2017/')))
test_dataloader = dict(
    batch_size=1, num_workers=0, sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(type=CocoDataset, data_root=r'DATA', pipeline=[], test_mode=True,
                 ann_file='annotations/instances_val2017.json',
                 data_prefix=dict(img='val2017/')))
test_evaluator = dict(type=CocoMetric,
                      ann_file=r'DATA/annotations/instances_val2017.json')
test_cfg = dict(type=TestLoop)
train_cfg = dict(type=EpochBasedTrainLoop, max_epochs=1)
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=AdamW, lr=1e-4))
"""


def test_types_given_as_classes(tmp_path):
    """A new-style config, which has no default_scope either."""
    from mm_efficient.datasets import generate_dataset
    from mm_efficient.runs import prepare_training
    data = generate_dataset('coco', tmp_path, num_train=2, num_val=1)
    base = Config.fromfile(CONFIGS / '_base_/models/retinanet_fpn.py')
    (tmp_path / 'base.py').write_text(f'model = {base.model.to_dict()!r}')
    path = tmp_path / 'new.py'
    path.write_text(NEW_STYLE.replace('DATA', str(data)))
    cfg = prepare_training(path, work_dir=tmp_path / 'work')
    assert cfg.default_scope == 'mmdet' and cfg.model.bbox_head.num_classes == 5
    assert cfg.model.backbone.type is SOFT
    assert cfg.train_dataloader.sampler.type == 'SeededSampler'
    cfg.model.neck.in_channels = [1, 2, 3]
    with pytest.raises(InputError, match='neck in_channels=.1, 2, 3. .*does not fit'):
        check_model(cfg)


@pytest.mark.parametrize('name, changes, message', [
    (DET, {'backbone.arch': 'nonsense'}, "unknown arch 'nonsense'.*tiny, small"),
    (DET, {'backbone.dpth': 3}, "unexpected keyword argument 'dpth'"),
    (DET, {'backbone.type': 'SOFT'}, "write 'mmpretrain.SOFT'"),
    (DET, {'backbone.in_channels': 4}, 'in_channels is 4.*3 channels'),
    (DET, {'backbone.out_indices': (1, 2, 3)},
     r'neck in_channels=\[64.*feature maps of \[128, 320, 512\] channels'),
    (FPN, {'neck.in_channels': [64, 128, 320, 500]}, r'maps of \[64.*512\]'),
    (UPERNET, {'decode_head.in_channels': [64, 128, 256, 512]},
     'decode_head in_channels'),
    (UPERNET, {'auxiliary_head.in_channels': 321},
     'auxiliary_head in_channels=321 and in_index=2.*got 320'),
    (UPERNET, {'auxiliary_head.in_index': 4}, 'auxiliary_head .*in_index=4'),
    (CLS, {'head.in_channels': 768}, 'head in_channels=768 .*1x512 and 768x'),
])
def test_wrong_models(name, changes, message):
    with pytest.raises(InputError, match=message):
        check_model(load(name, **changes))


def test_a_batch_of_one_through_batch_norms():
    cfg = load(UPERNET)
    cfg.train_dataloader.batch_size = 1
    with pytest.raises(InputError, match='batch_size is 1, but model.decode_h.*1 x 1'):
        check_model(cfg, pretrained=False)
    cfg = load(FPN)
    cfg.train_dataloader.batch_size = 1
    check_model(cfg, pretrained=False)


@pytest.mark.parametrize('backbone, message', [
    (dict(type='Nonsense'), 'Nonsense is not in'),
    (dict(type='ResNet', dpth=50), "argument 'dpth'")])
def test_models_of_others_that_cannot_be_built(backbone, message):
    cfg = load(DET)
    cfg.model.backbone = backbone
    with pytest.raises(InputError, match=f'cannot be built.*{message}'):
        check_model(cfg)


def test_models_of_others_are_left_alone():
    cfg = load(DET)
    cfg.model.backbone = dict(type='ResNet', depth=50)
    check_model(cfg)


@pytest.mark.parametrize('prefix', ['', 'published://'])
@pytest.mark.parametrize('write, message', [
    (lambda path: None, 'no'),
    (lambda path: path.write_bytes(b'PK'), 'checkpoint|read'),
    (lambda path: torch.save({'conv.weight': torch.rand(2)}, path),
     'does not fit|no known family'),
])
def test_pretrained_weights_are_read_first(tmp_path, prefix, write, message):
    path = tmp_path / 'weights.pth'
    write(path)
    cfg = load(DET, **{'backbone.init_cfg': dict(
        type='Pretrained', checkpoint=f'{prefix}{path}')})
    with pytest.raises(InputError, match=message) as stop:
        check_model(cfg)
    assert str(path) in str(stop.value)
    check_model(cfg, pretrained=False)


def test_weights_to_download_by_hand(checkpoints):
    with pytest.raises(InputError) as error:
        check_model(load(DET))
    for part in ('get SOFT_Tiny from https://github.com/fudan-zvg/SOFT',
                 f'save it as {checkpoints}/soft_tiny.pth', '--pretrained none'):
        assert part in str(error.value)
    assert str(error.value).count('\n') == 0


def test_weights_that_were_never_published():
    check_model(load('det/reduceformer_b1_maskrcnn_1x.py'))


def test_weights_that_fit(tmp_path):
    path = str(tmp_path / 'weights.pth')
    torch.save(SOFT('tiny').state_dict(), path)
    check_model(load(DET, **{'backbone.init_cfg': dict(
        type='Pretrained', checkpoint=path)}))


SWIFTFORMER = 'cls/swiftformer_xs_300e.py'


def test_a_missing_teacher_says_what_to_do():
    with pytest.raises(InputError) as error:
        check_teacher(load(SWIFTFORMER))
    for part in ('data/teachers/regnety_160.pth does not exist', 'regnety_160',
                 'model.teacher.checkpoint=timm/regnety_160.deit_in1k',
                 'model.teacher=None'):
        assert part in str(error.value)


@pytest.mark.parametrize('changes, message', [
    ({}, None), ({'num_classes': 7}, r'fc.weight \(5, .*as many classes'),
    ({'model_name': 'nonsense'}, 'nonsense')])
def test_a_teacher_has_to_fit(tmp_path, changes, message):
    path = tmp_path / 'teacher.pth'
    torch.save(timm.create_model('test_resnet', num_classes=5).state_dict(), path)
    teacher = {'model_name': 'test_resnet', 'num_classes': 5, **changes,
               'checkpoint': str(path)}
    cfg = load(SWIFTFORMER, **{f'teacher.{k}': v for k, v in teacher.items()})
    if message is None:
        check_teacher(cfg)
        return
    with pytest.raises(InputError, match=f'model.teacher: .*{message}'):
        check_teacher(cfg)


def test_without_distillation_there_is_nothing_to_check():
    check_teacher(load(SWIFTFORMER, teacher=None))
    check_teacher(load(CLS))


@pytest.mark.parametrize('options, kept', [
    ({}, False), ({'model.teacher.checkpoint': 'teacher.pth'}, True)])
def test_mini_distils_if_a_teacher_is_named(options, kept):
    cfg = load_config(str(CONFIGS / SWIFTFORMER), options, mini=True)
    assert bool(cfg.model.teacher) == kept
    if kept:
        assert cfg.model.teacher.num_classes == cfg.model.head.num_classes == 5
        assert cfg.model.teacher.checkpoint == 'teacher.pth'
