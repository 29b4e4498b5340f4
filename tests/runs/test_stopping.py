"""A training that a signal stops goes on as if it had not been; one run per folder."""
import multiprocessing
import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from mmengine.hooks import Hook

from mm_efficient.engine import stopping
from mm_efficient.engine.stopping import RestOfEpoch, SignalWatch
from mm_efficient.errors import InputError, StoppedError, error_line
from mm_efficient.runs import training
from mm_efficient.runs.work_dirs import LOCK, in_use, latest_checkpoint

CONFIGS = Path(__file__).parents[2] / 'configs'


class SendSignal(Hook):
    """Sends this process a signal in an iteration or a validation."""

    def __init__(self, signum, at, validating=False):
        self.signum, self.at, self.validating = signum, at, validating

    def send(self, runner, at):
        if at == self.at:
            os.kill(os.getpid(), self.signum)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if not self.validating:
            self.send(runner, runner.iter + 1)

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if self.validating:
            self.send(runner, runner.iter)


@pytest.fixture
def run(tiny, shallow, monkeypatch):
    """Train, with a signal at an iteration; return the runner."""
    hooks = []
    build = training.build_runner

    def build_with_hooks(cfg):
        runner = build(cfg)
        for hook in hooks:
            runner.register_hook(hook)
        return runner

    monkeypatch.setattr(training, 'build_runner', build_with_hooks)

    def train(task, folder, *signals, **options):
        hooks[:] = signals
        lengths = {'train_cfg.max_iters': 4, 'train_cfg.val_interval': 2} \
            if task == 'seg' else {'train_cfg.max_epochs': 2,
                                   'train_cfg.val_interval': 1}
        name = dict(cls='cls/soft_tiny_300e.py', seg='seg/soft_tiny_fpn_80k.py')[task]
        return training.train(
            CONFIGS / name, work_dir=folder, mini=True, cfg_options={
                **lengths, 'train_dataloader.batch_size': 2, 'log_level': 'ERROR',
                'default_hooks.checkpoint.interval': 2,
                'default_hooks.checkpoint.max_keep_ckpts': 1}, **options)

    return train


def weights(folder, name):
    return torch.load(folder / name, weights_only=False)['state_dict']


@pytest.mark.parametrize('task, signals', [
    # within an epoch of two, and in the validation after it
    ('cls', [('SIGINT', 1), ('SIGTERM', 2, True)]), ('seg', [('SIGUSR1', 3)])])
def test_stopped_and_continued(tiny, run, task, signals):
    last = 'epoch_2.pth' if task == 'cls' else 'iter_4.pth'
    run(task, tiny / 'whole')
    for name, *where in signals:
        signum = getattr(signal, name)
        with pytest.raises(StoppedError) as stop:
            run(task, tiny / 'rest', SendSignal(signum, *where), auto_resume=True)
        path = tiny / 'rest' / f'iter_{where[0]}.pth'
        assert f'Stopped by {name} after iteration {where[0]}: ' in str(stop.value)
        assert str(path) in str(stop.value) and path.is_file()
        assert stop.value.exit_code == (130 if name == 'SIGINT' else 143)
        assert latest_checkpoint(tiny / 'rest') == str(path)
    run(task, tiny / 'rest', auto_resume=True)
    assert not (tiny / 'rest' / LOCK).exists()
    checkpoints = [path.name for path in (tiny / 'rest').glob('*.pth')]
    assert checkpoints == [last]
    torch.testing.assert_close(weights(tiny / 'rest', last),
                               weights(tiny / 'whole', last), rtol=0, atol=0)


def test_exit_codes(capsys):
    for raised, code, line in (
            (StoppedError('Stopped.', signal.SIGUSR1), 143, 'Stopped.\n'),
            (StoppedError('', signal.SIGTERM), 143, ''),
            (KeyboardInterrupt(), 130, 'Stopped by Ctrl-C.\n')):
        with pytest.raises(SystemExit) as stop, error_line():
            raise raised
        assert stop.value.code == code and capsys.readouterr().err == line


def test_a_second_signal_stops_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(stopping, 'GRACE', 0.2)
    child = os.fork()
    if child == 0:
        os.dup2(os.open(tmp_path / 'said', os.O_WRONLY | os.O_CREAT), 2)
        with SignalWatch():
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGTERM)  # the same, sent on by a launcher
            time.sleep(0.3)
            os.write(2, b'alive')
            os.kill(os.getpid(), signal.SIGINT)
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    said = (tmp_path / 'said').read_text()
    assert re.fullmatch(r'\nSIGINT: stopping .*\nalive\nStopped at once.\n', said)


def test_data_workers_outlive_the_signals_of_a_group():
    with SignalWatch() as watch:
        child = os.fork()
        if child == 0:
            time.sleep(20)
            os._exit(0)
        for signum in (signal.SIGINT, signal.SIGTERM):
            os.kill(child, signum)
        time.sleep(0.2)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
    os.kill(child, signal.SIGTERM)  # as PyTorch does when it is over
    assert os.waitpid(child, 0)[0] == child
    assert watch.signum is None


def test_rest_of_an_epoch():
    batches = RestOfEpoch([[0], [1], [2]], 2)
    assert len(batches) == 3
    assert list(batches) == [[2]] and list(batches) == [[0], [1], [2]]


@pytest.fixture
def work_dir(tmp_path):
    """A folder with three checkpoints of a run, the last one named."""
    for step in (1, 2, 10):
        path = tmp_path / f'epoch_{step}.pth'
        torch.save(dict(meta=dict(epoch=step, iter=step), state_dict={},
                        optimizer=dict(param_groups=[]), message_hub={}), path)
        os.utime(path, (step, step))
    (tmp_path / 'last_checkpoint').write_text('epoch_10.pth')
    return tmp_path


@pytest.mark.parametrize('name', [
    'epoch_10.pth', '/of/old/epoch_10.pth', '', '\0', None])
def test_latest_checkpoint(work_dir, name):
    """Moved, without or with a broken file ``last_checkpoint``."""
    (work_dir / 'last_checkpoint').unlink()
    if name is not None:
        (work_dir / 'last_checkpoint').write_text(name)
    assert latest_checkpoint(work_dir) == str(work_dir / 'epoch_10.pth')


@pytest.mark.parametrize('damage', [
    lambda path: path.write_bytes(b''),
    lambda path: path.write_bytes(path.read_bytes()[:300]),
    lambda path: path.unlink(),
    lambda path: torch.save(dict(meta=None, state_dict={}, optimizer={}), path)])
def test_a_damaged_checkpoint_is_passed_over(work_dir, capsys, damage):
    damage(work_dir / 'epoch_10.pth')
    assert latest_checkpoint(work_dir) == str(work_dir / 'epoch_2.pth')
    if (work_dir / 'epoch_10.pth').exists():
        assert 'epoch_10.pth' in capsys.readouterr().err
        for path in work_dir.glob('epoch_[12].pth'):
            path.write_bytes(b'')
        with pytest.raises(InputError, match='no checkpoint to resume from.*epoch_'):
            latest_checkpoint(work_dir)


def test_nothing_to_resume(tmp_path):
    assert latest_checkpoint(tmp_path / 'nowhere') is None
    assert latest_checkpoint(tmp_path) is None


def test_a_work_dir_in_use(tmp_path):
    locked, end = multiprocessing.Event(), multiprocessing.Event()

    def use():
        with in_use(tmp_path):
            locked.set()
            end.wait(60)

    other = multiprocessing.get_context('fork').Process(target=use)
    other.start()
    assert locked.wait(60)
    message = rf'in use by another run \(process {other.pid} on .*--work-dir'
    with pytest.raises(InputError, match=message), in_use(tmp_path):
        pass
    end.set()
    other.join()
    with in_use(tmp_path):
        assert (tmp_path / LOCK).is_file()
    assert not (tmp_path / LOCK).exists()
