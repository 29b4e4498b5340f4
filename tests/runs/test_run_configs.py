"""What a config becomes by the arguments of a run."""
import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mm_efficient.errors import InputError
from mm_efficient.runs import load_config
from mm_efficient.runs.settings import (
    make_resumable,
    set_pretrained,
    set_resume,
    set_work_dir,
    start_from_scratch,
    use_auto_scale_lr,
)
from mm_efficient.runs.traversal import leaf_datasets, nested_dicts, split_metrics

DET, CLS = 'soft_tiny_maskrcnn_1x.py', 'soft_tiny_300e.py'


def test_data_sets_and_metrics_move_together():
    cfg = load_config(DET, data_root=Path('/own'))
    for split in ('train', 'val', 'test'):
        assert cfg[f'{split}_dataloader'].dataset.data_root == '/own'
    for split in ('val', 'test'):
        metric, = split_metrics(cfg, split)
        assert metric.ann_file == '/own/annotations/instances_val2017.json'


def test_every_head_has_the_number_of_classes():
    cfg = load_config(DET, num_classes=3)
    assert [node['num_classes'] for node in nested_dicts(cfg.model)
            if 'num_classes' in node] == [3, 3]
    assert cfg.model.roi_head.bbox_head.num_classes == 3
    cfg = load_config(CLS, num_classes=3)
    assert cfg.val_evaluator.topk == (1, )


def test_options_come_last():
    cfg = load_config(DET, {'model.roi_head.mask_head.num_classes': 7}, mini=True,
                      data_root='/own', num_classes=3)
    assert cfg.train_dataloader.dataset.data_root == '/own'
    assert cfg.model.roi_head.bbox_head.num_classes == 3
    assert cfg.model.roi_head.mask_head.num_classes == 7


@pytest.mark.parametrize('key, advice', [
    ('data_root', '--data-root FOLDER'), ('num_classes', '--num-classes N')])
def test_former_options_name_their_flags(key, advice):
    with pytest.raises(InputError, match=advice) as stop:
        load_config(DET, {key: 5})
    assert f'{key}=5' in str(stop.value) and '\n' not in str(stop.value)


def test_a_config_is_not_changed():
    given = load_config(DET)
    before = copy.deepcopy(given.to_dict())
    cfg = load_config(given, {'train_cfg.max_epochs': 1}, mini=True, num_classes=2)
    assert cfg.train_cfg.max_epochs == 1 and cfg.filename == given.filename
    assert given.to_dict() == before
    with pytest.raises(InputError, match='The config sets no default_scope'):
        load_config(Config(dict(model=dict())))


def test_leaf_datasets_of_wrappers():
    first, second = dict(type='A'), dict(type='B')
    assert leaf_datasets(dict(type='ConcatDataset', datasets=[
        dict(type='RepeatDataset', dataset=first), second])) == [first, second]


def test_work_dir():
    cfg = load_config(CLS)
    set_work_dir(cfg)
    assert cfg.work_dir == './work_dirs/soft_tiny_300e'
    cfg.work_dir = 'own'
    set_work_dir(cfg)
    assert cfg.work_dir == 'own'
    set_work_dir(cfg, Path('other'))
    assert cfg.work_dir == 'other'
    with pytest.raises(InputError, match='work_dir is missing'):
        set_work_dir(Config(dict(model=dict())))


@pytest.mark.parametrize('name', [DET, CLS, 'soft_tiny_fpn_80k.py'])
def test_pretrained_weights_of_our_backbones(checkpoints, name):
    cfg = load_config(name)
    (checkpoints / 'weights.pth').touch()
    for source in (Path('checkpoints/weights.pth'), 'http://localhost/weights.pth',
                   'swiftformer_xs', 'timm/model.tag'):
        set_pretrained(cfg, source)
        assert cfg.model.backbone.init_cfg == dict(
            type='Pretrained', checkpoint=f'published://{source}')
    for source in ('published://swiftformer_xs', 's3://bucket/weights.pth'):
        set_pretrained(cfg, source)
        assert cfg.model.backbone.init_cfg.checkpoint == source
    set_pretrained(cfg, 'none')
    assert 'init_cfg' not in cfg.model.backbone


@pytest.mark.parametrize('source, message', [
    ('none.pth', 'no such file'), ('soft_tiny', 'SOFT_Tiny from'),
    ('published://soft_small', 'published no weights of soft_small')])
def test_pretrained_weights_that_are_not_there(source, message):
    with pytest.raises(InputError, match=message):
        set_pretrained(load_config(DET), source)


def test_from_scratch_keeps_other_initialisations():
    cfg = load_config(DET)
    other = dict(type='Constant', layer='LayerNorm', val=1)
    cfg.model.backbone.init_cfg = [cfg.model.backbone.init_cfg, other]
    start_from_scratch(cfg)
    assert cfg.model.backbone.init_cfg == [other]


@pytest.mark.parametrize('name', [DET, 'soft_tiny_fpn_80k.py'])
def test_mini_starts_from_scratch(name):
    assert 'init_cfg' not in load_config(name, mini=True).model.backbone
    init_cfg = dict(type='Pretrained', checkpoint='mine.pth')
    cfg = load_config(name, {f'model.backbone.init_cfg.{key}': value
                             for key, value in init_cfg.items()}, mini=True)
    assert cfg.model.backbone.init_cfg == init_cfg


@pytest.mark.parametrize('prefix', ['', 'backbone.'])
def test_pretrained_weights_of_other_backbones(tmp_path, prefix):
    path = str(tmp_path / 'weights.pth')
    torch.save({'state_dict': {f'{prefix}conv1.weight': torch.zeros(1)}}, path)
    cfg = Config(dict(model=dict(
        pretrained='open-mmlab://resnet50_v1c', backbone=dict(type='ResNet'))))
    set_pretrained(cfg, path)
    assert cfg.model.pretrained is None
    assert cfg.model.backbone.init_cfg == dict(
        type='Pretrained', checkpoint=path, **({'prefix': prefix} if prefix else {}))
    with pytest.raises(InputError, match='does not exist'):
        set_pretrained(cfg, tmp_path / 'none.pth')
    set_pretrained(cfg, 'torchvision://resnet50')  # left to MMEngine
    assert cfg.model.backbone.init_cfg.checkpoint == 'torchvision://resnet50'


def test_pretrained_weights_without_a_backbone():
    with pytest.raises(InputError, match='needs model.backbone'):
        set_pretrained(Config(dict(model=dict(type='TimmClassifier'))), 'none')


def test_resume():
    """What a run resumes from has all weights: those it started from are not read."""
    cfg = load_config(DET, {'load_from': 'start.pth'})
    set_resume(cfg, Path('a.pth'))
    assert cfg.resume and cfg.load_from == 'a.pth'
    assert 'init_cfg' not in cfg.model.backbone


def test_auto_scale_lr():
    cfg = load_config(CLS)
    use_auto_scale_lr(cfg)
    assert cfg.auto_scale_lr.enable
    with pytest.raises(InputError, match='base_batch_size'):
        use_auto_scale_lr(Config())


def test_resumable_once():
    cfg = load_config(CLS)
    hooks = len(cfg.custom_hooks)
    for _ in range(2):
        make_resumable(cfg)
    assert cfg.train_dataloader.sampler.type == 'SeededSampler'
    assert cfg.train_dataloader.sampler.sampler.type != 'SeededSampler'
    kinds = [step['type'] for step in cfg.train_dataloader.dataset.pipeline]
    assert kinds.count('SeedSample') == 1 and kinds[0] == 'SeedSample'
    assert len(cfg.custom_hooks) == hooks + 1
