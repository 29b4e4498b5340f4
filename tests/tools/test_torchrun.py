"""torchrun of ours: signals are passed on, and exit statuses are those of the runs."""
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

TORCHRUN = Path(__file__).parents[2] / 'tools' / 'torchrun.py'
SCRIPT = '''
import os, signal, sys, time
def stop(signum, frame):
    time.sleep(0.5)  # writes a checkpoint
    open(f"stopped{os.environ['RANK']}", 'w').close()
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
open(f"ready{os.environ['RANK']}", 'w').close()
if sys.argv[1] == 'killed':
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
'''


@pytest.mark.parametrize('what, code', [('wait', 143), ('killed', 137)])
def test_exit_status(tmp_path, what, code):
    (tmp_path / 'script.py').write_text(SCRIPT)
    processes = 2 if what == 'wait' else 1
    run = subprocess.Popen(
        [sys.executable, TORCHRUN, '--standalone', f'--nproc_per_node={processes}',
         'script.py', what], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env=dict(os.environ, OMP_NUM_THREADS='1'))
    if what == 'wait':
        until = time.monotonic() + 100
        while len(list(tmp_path.glob('ready*'))) < 2 and time.monotonic() < until:
            time.sleep(0.1)
        run.send_signal(signal.SIGTERM)
    _, output = run.communicate(timeout=100)
    assert run.returncode == code and 'Traceback' not in output
    errors = [line for line in output.splitlines() if line.startswith('error: ')]
    if what == 'wait':
        assert len(list(tmp_path.glob('stopped*'))) == 2
    else:
        line, = errors
        assert line.startswith('error: process 0 was ended by SIGKILL')
