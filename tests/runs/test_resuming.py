"""Resuming a training whose settings have changed."""
import copy

import pytest
from mmengine.config import Config
from mmengine.hooks import Hook

from mm_efficient import runs
from mm_efficient.errors import InputError
from mm_efficient.runs import mini
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.resuming import check_same_training

CLS, DET, SEG = 'soft_tiny_300e.py', 'soft_tiny_maskrcnn_1x.py', 'soft_tiny_fpn_80k.py'


def compare(name, before=(), now=(), **changes):
    cfgs = [load_config(name, dict(options)) for options in (before, now)]
    for cfg, processes in zip(cfgs, changes.get('processes', (8, 8))):
        cfg.num_processes = processes
    return check_same_training(cfgs[1], {'meta': {'cfg': cfgs[0].pretty_text}}, 'x.pth')


BATCH, LR = 'train_dataloader.batch_size', 'optim_wrapper.optimizer.lr'
DATA = 'train_dataloader.dataset.'


@pytest.mark.parametrize('name', [CLS, DET, SEG, 'swiftformer_xs_300e.py',
                                  'lowformer_e2_300e.py', 'ecoformer_pvt_b0_30e.py'])
@pytest.mark.parametrize('now', [
    {}, {'train_dataloader.num_workers': 1, 'log_level': 'ERROR',
         DATA + 'data_root': '/elsewhere', 'default_hooks.logger.interval': 5,
         'train_cfg.val_interval': 7, 'env_cfg.cudnn_benchmark': True}])
def test_same_training(name, now):
    assert compare(name, now=now) is None  # else it raises


@pytest.mark.parametrize('name, now, message', [
    (DET, {BATCH: 4}, 'total batch size was 16, is 32'),
    (DET, {'optim_wrapper.accumulative_counts': 2}, 'total batch size was 16, is 32'),
    (DET, {LR: 1e-4}, 'optimizer.lr was 0.0002, is 0.0001'),
    (DET, {'optim_wrapper.optimizer.weight_decay': 0.}, 'weight_decay was 0.0001'),
    (CLS, {'optim_wrapper.paramwise_cfg.bias_lr_mult': 2.}, 'bias_lr_mult was not set'),
    (DET, {'auto_scale_lr.enable': True}, 'auto_scale_lr was False, is True'),
    (DET, {'param_scheduler.1.milestones': [16, 22]},
     r'param_scheduler.1.milestones was \[8, 11\], is \[16, 22\]'),
    (DET, {'train_cfg.max_epochs': 24}, 'train_cfg.max_epochs was 12, is 24'),
    (SEG, {'train_cfg.max_iters': 9}, 'max_iters was 80000, is 9'),
    (DET, {DATA + 'ann_file': 'other.json'}, 'training data.ann_file was annot.*other'),
    (DET, {DATA + 'metainfo.classes': ['cat']}, 'metainfo.classes was not set'),
    (DET, {'train_dataloader.dataset': dict(
        type='RepeatDataset', times=2, dataset=dict(type='CocoDataset'))},
     'training data.times was not set, is 2')])
def test_what_differs_is_named(name, now, message):
    with pytest.raises(InputError, match=message) as stop:
        compare(name, now=now)
    for way in ('--allow-changes', 'load_from=x.pth', 'as they were'):
        assert way in str(stop.value)


def test_batch_of_all_processes():
    compare(DET, now={BATCH: 4}, processes=(8, 4))
    compare(DET, processes=(None, 4))  # a checkpoint of an earlier version
    with pytest.raises(InputError, match='total batch size was 16, is 8'):
        compare(DET, processes=(8, 4))


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    cfg = load_config(DET)
    text = f'model = open({str(tmp_path / "x")!r}, "w")\n' + cfg.pretty_text
    check_same_training(cfg, {'meta': {'cfg': text}}, 'x.pth')
    assert not (tmp_path / 'x').exists()
    check_same_training(cfg, {'meta': None}, 'x.pth')


class Rates(Hook):
    """Learning rate of every iteration."""

    def before_run(self, runner):
        self.seen = {}

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.seen[runner.iter] = runner.optim_wrapper.get_lr()['lr'][0]


def rates(folder, resume=None, **changes):
    cfg = Config(copy.deepcopy(load_config(CLS, mini=True).to_dict()))
    cfg.train_cfg.max_epochs = 3
    cfg.train_dataloader.batch_size = changes.get('batch', 2)
    cfg.optim_wrapper.optimizer.lr = changes.get('lr', 1e-3)
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=.1, by_epoch=False, begin=0, end=3),
        dict(type='CosineAnnealingLR', by_epoch=True, begin=0, end=3, T_max=3,
             convert_to_iter_based=True),
        dict(type='MultiStepLR', by_epoch=True, milestones=[2], gamma=.5)]
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=-1)
    cfg.log_level = 'ERROR'
    mini.generate_mini_data('mmpretrain')
    runner = runs.build_runner(runs.prepare_training(
        cfg, work_dir=folder, resume=resume,
        allow_changes=changes.get('allow', resume is not None)))
    hook = Rates()
    runner.register_hook(hook)
    runner.train()
    return hook.seen


def test_changes_on_purpose(tiny, shallow):
    """From the checkpoint on, the rates are those of a run with the new settings."""
    rates('before')
    new = dict(batch=1, lr=5e-4)
    with pytest.raises(InputError, match='total batch size was 2, is 1'):
        rates('rest', 'before/epoch_1.pth', allow=False, **new)
    assert not (tiny / 'rest').exists()
    whole = rates('whole', **new)
    rest = rates('rest', 'before/epoch_1.pth', **new)
    assert sorted(rest) == list(range(4, 12))
    assert rest == pytest.approx({i: whole[i] for i in rest}, rel=1e-6)
    assert len(set(rest.values())) == 8
