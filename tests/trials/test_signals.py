"""Signals to the real commands: exit status, one line, a checkpoint to go on from."""
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mm_efficient.runs.work_dirs import latest_checkpoint

pytestmark = pytest.mark.trials
ROOT = Path(__file__).parents[2]
LENGTH = 300  # iterations; far more than are trained
OPTIONS = ['--mini', '--work-dir', 'work', '--auto-resume', '--cfg-options',
           'train_dataloader.batch_size=2', 'default_hooks.logger.interval=1',
           'val_dataloader=None', 'val_cfg=None', 'val_evaluator=None']
ALONE = [sys.executable, str(ROOT / 'tools/train.py'), 'soft_tiny_fpn_80k.py']
TWO = ['bash', str(ROOT / 'tools/dist_train.sh'), 'soft_tiny_fpn_80k.py', '2']


def start(command, iterations=LENGTH):
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable, PORT='29613',
               PYTHONUNBUFFERED='1',
               PYTHONPATH=os.pathsep.join([str(ROOT), os.environ['PYTHONPATH']]))
    return subprocess.Popen(
        [*command, *OPTIONS, f'train_cfg.max_iters={iterations}'], env=env,
        stdout=open('log', 'w'), stderr=subprocess.STDOUT, start_new_session=True)


def trained(process, begin):
    """Wait until some iterations have been trained."""
    pattern = re.compile(r'Iter\(train\) \[ *(\d+)/')
    while process.poll() is None:
        done = [int(number) for number in pattern.findall(Path('log').read_text())]
        if done and done[-1] >= begin:
            return
        time.sleep(0.2)
    pytest.fail(Path('log').read_text()[-3000:])


def workers(process):
    """Processes that a process has started."""
    found = []
    for status in Path('/proc').glob('[0-9]*/stat'):
        try:
            pid, parent = re.match(r'(\d+) \(.*\) \w (\d+)',
                                   status.read_text()).groups()
        except (OSError, AttributeError):
            continue
        if int(parent) == process.pid:
            found.append(int(pid))
    return found


@pytest.mark.parametrize('command, to, signum, code', [
    (ALONE, 'process', signal.SIGINT, 130), (ALONE, 'process', signal.SIGTERM, 143),
    (TWO, 'process', signal.SIGTERM, 143), (TWO, 'group', signal.SIGINT, 130),
    (TWO, 'worker', signal.SIGTERM, 143), (TWO, 'process', signal.SIGUSR1, 143)],
    ids=str)
def test_stopped(tmp_path, monkeypatch, count, command, to, signum, code):
    monkeypatch.chdir(tmp_path)
    process = start(command)
    trained(process, 3)
    if to == 'group':  # as Ctrl-C in a terminal
        os.killpg(process.pid, signum)
    else:
        os.kill(process.pid if to == 'process' else workers(process)[-1], signum)
    status = process.wait(300)
    output = Path('log').read_text()
    checkpoint = latest_checkpoint('work')
    lines = re.findall(r'^Stopped by .*$', output, re.M)
    clear = status == code and len(lines) == 1 and 'Traceback' not in output
    number = 'two processes' if command is TWO else 'one process'
    count(f'{signal.Signals(signum).name} to the {to}, {number}, command line; '
          f'exit status {status}', tried=1, clear=int(clear),
          lost=int(checkpoint is None))
    assert clear and checkpoint is not None, output[-3000:]
    begin = int(re.search(r'iter_(\d+)', checkpoint)[1])
    again = start([*command, '--allow-changes'], begin + 2)
    assert again.wait(300) == 0, Path('log').read_text()[-3000:]
