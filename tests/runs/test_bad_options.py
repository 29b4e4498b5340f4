"""Options and configs that cannot work: one line, before a work dir is made."""
import errno
import os
import re
import sys

import pytest
import torch
from mmengine.hooks import Hook

from mm_efficient.analysis.cli import model_parser
from mm_efficient.errors import InputError
from mm_efficient.runs import devices, distributed, prepare_training
from mm_efficient.runs.arguments import _check_optimizer as check_optimizer
from mm_efficient.runs.arguments import check_arguments
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.distributed import check_environment
from mm_efficient.runs.options import tool_parser
from mm_efficient.runs.settings import check_auto_scale_lr, make_resumable
from mm_efficient.runs.work_dirs import check_work_dir
from mm_efficient.weights.checking import check_checkpoint

CLS, DET, SEG = 'soft_tiny_300e.py', 'soft_tiny_maskrcnn_1x.py', 'soft_tiny_fpn_80k.py'
OPTIMIZER = 'optim_wrapper.optimizer'


@pytest.fixture(scope='module')
def configs():
    """Complete configs of the three tasks, which are read once."""
    return {name: load_config(name) for name in (CLS, DET, SEG)}


@pytest.mark.parametrize('key, value, message', [
    ('model', None, 'model is None; expected'),
    ('model', 5, 'model'),
    ('train_dataloader', None, 'sets no train_dataloader'),
    ('train_dataloader', 5, 'train_dataloader'),
    ('optim_wrapper', None, 'sets no optim_wrapper'),
    ('train_cfg', 'x', 'train_cfg'),
    ('custom_hooks.99.momentum', 1, 'custom_hooks'),
    ('param_scheduler.x.end', 1, 'param_scheduler.x'),
    ('train_dataloader.dataset.data_root', 5, 'data_root is 5; expected a path'),
    ('load_from', 5, 'load_from is 5; expected a path'),
    ('work_dir', [1], r'work_dir is \[1\]; expected a path'),
    ('compile', 5, 'compile is 5; expected a dict or a bool'),
    ('randomness', 5, 'randomness is 5; expected a dict'),
    ('visualizer', 'x', "visualizer is 'x'; expected a dict"),
    ('auto_scale_lr', dict(enable=True, base_batch_size=0), 'base_batch_size is 0'),
    ('auto_scale_lr', dict(enable=True, base_batch_size='x'), "base_batch_size is 'x'"),
    ('train_dataloader.dataset.pipeline', 5, 'pipeline is 5; expected a list of dicts'),
    ('val_dataloader.dataset.metainfo', 5, 'metainfo is 5; expected a dict'),
    ('train_dataloader.dataset.max_refetch', 'x', "max_refetch is 'x'; expected a num"),
    ('train_dataloader.sampler', 5, 'train_dataloader.sampler is 5; expected a dict'),
    ('train_dataloader.batch_size', 0, 'train_dataloader.batch_size is 0; expected'),
    ('train_dataloader.batch_size', 'two', "batch_size is 'two'"),
    ('val_dataloader.batch_size', -1, 'val_dataloader.batch_size is -1'),
    ('val_dataloader.num_workers', -1, 'num_workers is -1'),
    ('train_cfg.val_interval', 0, 'val_interval is 0'),
    ('train_cfg.val_interval', 'x', "val_interval is 'x'"),
    (f'{OPTIMIZER}.lrr', 1, r"AdamW has no argument 'lrr' \(did you mean 'lr'"),
    (f'{OPTIMIZER}.lr', 'abc', f'{OPTIMIZER}, AdamW with .*lr='),
    (f'{OPTIMIZER}.lr', float('nan'), 'optimizer.lr is nan'),
    (f'{OPTIMIZER}.lr', float('inf'), 'optimizer.lr is inf'),
    (f'{OPTIMIZER}.lr', -1., f'{OPTIMIZER}, AdamW with lr=-1.0'),
    (f'{OPTIMIZER}.weight_decay', -1., 'weight_decay=-1.0'),
    (f'{OPTIMIZER}.type', 'AdamX', r"type is 'AdamX'.*did you mean 'Adam"),
    (f'{OPTIMIZER}.type', None, 'optimizer.type is None; expected the name of'),
    ('optim_wrapper.clip_gradd', dict(max_norm=1), "'clip_gradd'.*mean 'clip_grad'"),
    ('optim_wrapper.clip_grad', 5, 'optim_wrapper with .*clip_grad=5: If `clip_grad`'),
    ('optim_wrapper.clip_grad', dict(type='x', norm=1, _delete_=True), 'type of clip_'),
    ('optim_wrapper.clip_grad', dict(type='value', norm=1, _delete_=True),
     "clip_grad=.*argument 'n"),
    ('optim_wrapper.accumulative_counts', 0, 'accumulative_counts=0.*at least'),
    ('optim_wrapper.accumulative_counts', 'x', "counts is 'x'; expected a number"),
    ('optim_wrapper.type', 'AmpWrapper', "optim_wrapper.type is 'AmpWrapper'"),
    ('param_scheduler', [dict(type='LinearLR', start_factor=float('nan'))],
     'param_scheduler.0 with start_factor=nan gives a learning rate of nan'),
    ('param_scheduler', [dict(type='LinearLR', start_factor=0)],
     'param_scheduler.0 with start_factor=0: .*zero'),
    ('param_scheduler.0.typ', 'x', "param_scheduler.0: .* no argument 'typ'"),
    ('param_scheduler.0.type', 'Cosine', "param_scheduler.0.type is 'Cosine'"),
    ('default_hooks.checkpoint.intervall', 1, "did you mean 'interval'"),
    ('default_hooks.checkpoint.interval', 'x', "interval is 'x'; expected a number"),
    ('default_hooks.checkpoint', 5, 'hooks.checkpoint is 5; expected a dict'),
    ('default_hooks.checkpoint.filename_tmpl', 5, 'filename_tmpl is 5; expected text'),
    ('default_hooks.checkpoint.save_best', 5, 'save_best is 5; expected text'),
    ('default_hooks.checkpoint.out_dir', 5, 'out_dir is 5; expected text'),
    ('val_cfg.fp16', 'ture', "val_cfg.fp16 is 'ture'; expected True or"),
    ('default_hooks.checkpoint.out_dir', '/proc/nowhere', '/proc.*another out_dir'),
    ('log_processor.window_size', 'x', "window_size is 'x'; expected a number"),
    ('log_processor.windowsize', 1, "no argument 'windowsize'.*mean 'window_size'"),
    ('train_cfg.val_begin', 'x', "val_begin is 'x'; expected a number"),
    ('val_evaluator', 5, 'val_evaluator is 5; expected a dict'),
    ('custom_hooks', ['EMAHook'], "custom_hooks.0 is 'EMAHook'; expected a dict"),
    ('default_hooks.checkpoint.type', 'Hook7', "checkpoint.type is 'Hook7'"),
    ('train_dataloader.sampler.shufle', True, "sampler: .*'shufle'.*mean 'shuffle'"),
    ('train_dataloader.dataset.type', 'Nothing', "dataset.type is 'Nothing'"),
    ('train_dataloader.dataset.pipeline.0.type', 'Lod', r"pipeline.0.type is 'Lod'"),
    ('val_evaluator.type', 'Metric9', "val_evaluator.type is 'Metric9'"),
    ('visualizer.type', 'V', "visualizer.type is 'V'")])
@pytest.mark.parametrize('name', [CLS, DET, SEG])
def test_settings_that_cannot_work(tmp_path, configs, name, key, value,
                                   message):
    with pytest.raises(InputError) as error:
        prepare_training(configs[name], cfg_options={key: value}, pretrained='none',
                         work_dir=tmp_path / 'work')
    text = str(error.value)
    assert re.search(message.replace('AdamW', r'\w+'), text), text
    assert not (tmp_path / 'work').exists()


@pytest.mark.parametrize('clip', [
    dict(max_norm=1.), dict(type='value', clip_value=2.),
    dict(type='norm', max_norm=1., norm_type=1), None])
def test_clipping_that_works(clip):
    check_optimizer(dict(optimizer=dict(type='SGD', lr=.1), clip_grad=clip))


@pytest.mark.parametrize('text, message', [
    ('a = nothing', 'NameError.*nothing.*line 1'),
    ('a = 1\nb = [][3]', 'IndexError.*line 2'), ('a = 1 / 0', 'ZeroDivisionError'),
    ('assert False', 'AssertionError'),
    ('raise SystemError("x\\ny")', 'SystemError: x y'),
    ('_base_ = "config.py"', 'own base'), ('a = (', 'SyntaxError'),
    ('_base_ = "other.yml"', 'other.yml|expected|mapping'),
    ('_base_ = ["other.py"]\na = {{_base_.no}}', 'no')])
def test_configs_that_cannot_be_read(tmp_path, monkeypatch, request, text, message):
    monkeypatch.chdir(tmp_path)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)  # a loop ends sooner
    request.addfinalizer(lambda: sys.setrecursionlimit(limit))
    (tmp_path / 'config.py').write_text(text)
    (tmp_path / 'other.yml').write_text('a: [1, 2\nb: {')
    (tmp_path / 'other.py').write_text('yes = 1')
    with pytest.raises(InputError) as error:
        load_config('config.py')
    assert re.search(f'^Config config.py cannot be read.*({message})', str(error.value))
    assert '\n' not in str(error.value)


@pytest.mark.parametrize('launcher', ['pytorch', 'slurm', 'mpi'])
def test_launchers_without_their_environment(tmp_path, monkeypatch, launcher):
    for name in distributed.ENVIRONMENT[launcher]:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=f'--launcher {launcher}: the environment do'):
        prepare_training(CLS, launcher=launcher, work_dir=tmp_path / 'work')
    for name in distributed.ENVIRONMENT[launcher]:
        monkeypatch.setenv(name, '0')
    rank, size = distributed.RANK_AND_SIZE[launcher]
    with pytest.raises(InputError, match=f'has {rank}=0, expected less than {size}=0'):
        check_environment(launcher)
    monkeypatch.setenv(size, '1')
    check_environment(launcher)
    monkeypatch.setenv('MASTER_PORT', '70000')
    with pytest.raises(InputError, match='MASTER_PORT=70000, expected 1 to 65535'):
        check_environment(launcher)
    monkeypatch.setenv(distributed.ENVIRONMENT[launcher][0], 'x')
    with pytest.raises(InputError, match='=x, expected numbers'):
        check_environment(launcher)


def fail_with(code):
    def fail(*args, **kwargs):
        raise OSError(code, os.strerror(code))
    return fail


def test_work_dirs_that_cannot_be_made(tmp_path, monkeypatch):
    (tmp_path / 'file').touch()
    for path, message in ((tmp_path / 'file', 'file is a file'), ('', 'not a path'),
                          (tmp_path / 'file/below', 'file is a file'),
                          ('/proc/nowhere', '/proc'), ('a\0b', 'not a path')):
        with pytest.raises(InputError, match=message):
            check_work_dir(path)
    for code in (errno.EACCES, errno.EROFS, errno.ENOSPC):
        with monkeypatch.context() as patch, pytest.raises(
                InputError, match=f'{os.strerror(code)}. Choose another --work-dir'):
            patch.setattr('tempfile.TemporaryFile', fail_with(code))
            check_work_dir(tmp_path / 'new')
    check_work_dir(tmp_path / 'new/below')
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('text, message', [
    ('foo', 'foo: expected KEY=VALUE'), ('=1', 'expected KEY=VALUE'),
    ('a..b=1', 'expected KEY=VALUE'), ('a=[1,2', 'brackets are not closed'),
    ('a=[(1,2]', 'brackets are not closed')])
@pytest.mark.parametrize('make, first', [(tool_parser, []), (model_parser, ['model'])])
def test_options_that_cannot_be_parsed(make, first, text, message):
    parser = make('a tool')
    args = parser.parse_args([*first, '--cfg-options', 'a=[1,2]'])
    assert args.cfg_options == {'a': [1, 2]}
    with pytest.raises(SystemExit) as stop:
        parser.parse_args([*first, '--cfg-options', 'b=1', text])
    assert stop.value.code.startswith(f'error: --cfg-options {text}: ')
    assert message in stop.value.code


@pytest.mark.parametrize('key, value', [
    ('default_scope', 'nowhere'), ('default_scope', 'a b'), ('tta_model', 5)])
def test_parts_that_every_tool_reads(key, value):
    with pytest.raises(InputError, match=f'{value}'):
        load_config(CLS, {key: value})


def test_hints_of_other_peoples_classes_are_not_trusted(configs):
    class Report(Hook):
        def __init__(self, count: int = 1):
            pass
    cfg = configs[CLS].copy()
    cfg.custom_hooks = [dict(type=Report, count='5')]
    check_arguments(cfg, ['train'])
    cfg.custom_hooks = [dict(type='LoggerHook', interval='5')]
    with pytest.raises(InputError, match='custom_hooks.0.interval is .5.; expected a'):
        check_arguments(cfg, ['train'])


def test_amp_takes_numbers_though_its_hint_says_text():
    cfg = load_config(CLS, {'optim_wrapper.type': 'AmpOptimWrapper',
                            'optim_wrapper.loss_scale': 512.})
    check_arguments(cfg, ['train'])


@pytest.mark.parametrize('name, switch', [(CLS, 'enable'), (DET, 'draw')])
def test_predictions_are_drawn_at_no_interval(name, switch):
    never = {'default_hooks.visualization.interval': 0}
    check_arguments(load_config(name, never), ['val'])
    with pytest.raises(InputError, match='visualization.interval is 0; expected a pos'):
        check_arguments(load_config(
            name, {**never, f'default_hooks.visualization.{switch}': True}), ['val'])


def test_rates_that_are_scaled_by_nothing_only_matter_if_they_are_scaled():
    check_auto_scale_lr(load_config(CLS, {'auto_scale_lr': dict(base_batch_size=0)}))


@pytest.mark.parametrize('pipeline', [(dict(type='A'), ), [dict(type='A')], None])
def test_seeds_precede_pipelines_of_any_kind(pipeline):
    cfg = load_config(CLS)
    cfg.train_dataloader.dataset.pipeline = pipeline
    make_resumable(cfg)
    steps = cfg.train_dataloader.dataset.pipeline
    assert [step['type'] for step in steps] == ['SeedSample', 'A'][:1 + bool(pipeline)]
    cfg.train_dataloader = dict(sampler=dict(), dataset=dict(type='Own'))
    make_resumable(cfg)
    assert 'pipeline' not in cfg.train_dataloader.dataset


def test_loaders_without_shared_memory(monkeypatch, configs):
    def fail():
        raise OSError(30, 'Read-only file system')

    monkeypatch.setattr(devices.multiprocessing, 'Lock', fail)
    with pytest.raises(InputError, match='shared memory.*train_dataloader.num_w.*=0'):
        devices.check_workers(configs[CLS], ['train'])
    devices.check_workers(load_config(configs[CLS], {
        'train_dataloader.num_workers': 0}), ['train'])


@pytest.mark.parametrize('state, message', [
    (dict(meta=None), 'meta'), (dict(meta={}), 'meta.epoch, meta.iter'),
    (dict(optimizer='x'), 'optimizer'), (dict(optimizer={}), 'optimizer.param_groups'),
    (dict(optimizer=dict(param_groups='x')), 'optimizer.param_groups'),
    (dict(optimizer=dict(param_groups=[], state=3)), 'optimizer.state'),
    (dict(state_dict=None), 'state_dict'), (dict(param_schedulers=3), 'param_sched')])
def test_checkpoints_without_a_training_state(tmp_path, state, message):
    path = tmp_path / 'epoch_1.pth'
    torch.save({**dict(meta=dict(epoch=1, iter=1), state_dict={}, message_hub={},
                       optimizer=dict(param_groups=[])), **state}, path)
    with pytest.raises(InputError, match=message) as error:
        check_checkpoint(str(path), resume=True)
    assert str(path) in str(error.value)
