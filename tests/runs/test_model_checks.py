from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config

from mm_efficient.errors import InputError
from mm_efficient.models.soft.backbone import SOFT
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.model_checks import check_model, check_teacher

CONFIGS = Path(__file__).parents[2] / 'configs'
DET, FPN = 'det/soft_tiny_maskrcnn_1x.py', 'seg/soft_tiny_fpn_80k.py'
UPERNET, CLS = 'seg/soft_tiny_upernet_160k.py', 'cls/soft_tiny_300e.py'


def load(name, **changes):
    cfg = Config.fromfile(CONFIGS / name)
    cfg.merge_from_dict({f'model.{key}': v for key, v in changes.items()})
    return cfg


@pytest.mark.parametrize(
    'name', sorted(str(p.relative_to(CONFIGS))
                   for p in CONFIGS.glob('[cds]*/*.py')))
def test_every_config_passes(name):
    check_model(load(name))


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
