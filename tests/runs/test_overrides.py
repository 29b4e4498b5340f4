"""Options that nothing reads, and best checkpoints, are named."""
import re
from contextlib import nullcontext

import pytest

from mm_efficient.errors import InputError
from mm_efficient.runs import overrides as module
from mm_efficient.runs import prepare_training
from mm_efficient.runs.configs import load_config

CLS, DET, SEG = 'soft_tiny_300e.py', 'soft_tiny_maskrcnn_1x.py', 'soft_tiny_fpn_80k.py'


@pytest.mark.parametrize('key, message', [
    ('foo.bar', "no 'foo', and nothing would read it"),
    ('optim_wraper.optimizer.lr', "did you mean 'optim_wrapper'"),
    ('train_dataloder.batch_size', "did you mean 'train_dataloader'"),
    ('data.samples_per_gpu', "no 'data'"), ('total_epochs', "no 'total_epochs'"),
    ('lr_config.step', "no 'lr_config'"), ('optimizer.lr', "no 'optimizer'")])
def test_keys_that_nothing_reads(key, message):
    with pytest.raises(InputError, match=message):
        load_config(DET, {key: 1})


@pytest.mark.parametrize('key, message', [
    ('train_pipeline.0.color_type', 'train_pipeline is a variable of the config file'),
    ('model.test_cfg.rcnn.score_thrr', "'score_thrr' is new .*mean 'score_thr'"),
    ('auto_scale_lr.base_batchsize', "did you mean 'base_batch_size'"),
    ('env_cfg.cudnn_benchmak', "did you mean 'cudnn_benchmark'")])
def test_keys_that_perhaps_nothing_reads(monkeypatch, key, message):
    lines = []
    monkeypatch.setattr(module, 'print_log', lambda text, **kw: lines.append(text))
    load_config(DET, {key: 1})
    line, = lines
    assert re.search(message, line) and key in line


def test_keys_that_are_read_are_not_named(monkeypatch):
    lines = []
    monkeypatch.setattr(module, 'print_log', lambda text, **kw: lines.append(text))
    load_config(DET, {
        'train_dataloader.batch_size': 1, 'randomness': dict(seed=1), 'compile': True,
        'train_dataloader.dataset.indices': 3, 'model.backbone.with_cp': True,
        'load_from': 'x.pth', 'resume': True, 'find_unused_parameters': True,
        'model_wrapper_cfg.type': 'X', 'param_scheduler.0.end': 5,
        'default_hooks.checkpoint.interval': 2, 'tta_model.tta_cfg.max_per_img': 3,
        'val_evaluator.classwise': True})
    assert not lines


@pytest.mark.parametrize('name, key', [(SEG, 'max_iters'), (DET, 'max_epochs')])
@pytest.mark.parametrize('value', [0, -5, 'many'])
def test_trainings_of_no_length(tmp_path, name, key, value):
    with pytest.raises(InputError, match=f'train_cfg.{key} is {value!r}'):
        prepare_training(name, cfg_options={f'train_cfg.{key}': value},
                         work_dir=tmp_path / 'work')
    assert not (tmp_path / 'work').exists()


def test_changes_without_resuming(tmp_path):
    with pytest.raises(InputError, match='no effect without --resume'):
        prepare_training(DET, allow_changes=True, work_dir=tmp_path / 'work')


# -------------------------------------------------------------- best checkpoint


@pytest.mark.parametrize('name, key', [
    (CLS, 'accuracy/top1'), (DET, 'coco/bbox_mAP'), (SEG, 'mIoU')])
def test_configs_name_the_metric_of_the_best_checkpoint(name, key):
    cfg = load_config(name)
    assert cfg.default_hooks.checkpoint.save_best == key
    module.check_save_best(cfg)


@pytest.mark.parametrize('name, key, given', [
    (CLS, 'accuracy/top5', True), (CLS, 'accuracy/top9', False),
    (DET, 'coco/bbox_mAP_50', True),
    ('soft_tiny_retinanet_1x.py', 'coco/segm_mAP', False),
    (SEG, 'mAcc', True), (SEG, 'mDice', False)])
def test_the_metric_of_the_best_checkpoint(name, key, given):
    cfg = load_config(name, {'default_hooks.checkpoint.save_best': key})
    with nullcontext() if given else pytest.raises(InputError, match=key):
        module.check_save_best(cfg)


@pytest.mark.parametrize('name, evaluator, message', [
    (DET, dict(type='VOCMetric'), "'coco/bbox_mAP'.*pascal_voc"),
    (CLS, dict(type='SingleLabelMetric'), 'single-label'),
    (SEG, dict(type='IoUMetric', iou_metrics=['mDice']), 'mIoU'),
    (SEG, dict(type='IoUMetric', prefix='own'), 'own/')])
def test_a_metric_that_the_evaluator_does_not_give(name, evaluator, message):
    cfg = load_config(name)
    cfg.val_evaluator = evaluator
    with pytest.raises(InputError, match=message):
        module.check_save_best(cfg)


def test_the_first_class_does_not_choose_the_best_checkpoint():
    """With `auto` the first metric decides, and `classwise` puts classes first."""
    cfg = load_config(DET, {'default_hooks.checkpoint.save_best': 'auto',
                            'val_evaluator.classwise': True})
    module.check_save_best(cfg)
    assert cfg.default_hooks.checkpoint.save_best == 'coco/bbox_mAP'


def test_other_evaluators_are_left_alone():
    cfg = load_config(DET)
    cfg.val_evaluator = [dict(type='VOCMetric'), dict(type='OwnMetric')]
    module.check_save_best(cfg)
    cfg.val_evaluator = None
    module.check_save_best(cfg)
