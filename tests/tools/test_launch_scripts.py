"""Launch scripts answer wrong arguments in one line, also when sh runs them."""
import os
import re
import runpy
import socket
import subprocess
import sys
import types
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / 'tools'


def launch(shell, script, *arguments, **env):
    return subprocess.run(
        [shell, TOOLS / script, *arguments], capture_output=True, text=True,
        env={**os.environ, 'PYTHON': sys.executable, **env}, timeout=60)


@pytest.mark.parametrize('shell', ['bash', 'sh'])
@pytest.mark.parametrize('gpus', ['0', 'x', '', '-1'])
@pytest.mark.parametrize('script, before', [
    ('dist_train.sh', ['c.py']), ('dist_test.sh', ['c.py', 'x.pth'])])
def test_number_of_processes(shell, script, before, gpus):
    done = launch(shell, script, *before, gpus)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr == f"error: GPUS is '{gpus}': expected a number of processes, " \
                          '1 or more.\n'


def test_a_port_in_use():
    with socket.socket() as server:
        server.bind(('', 0))
        server.listen()
        port = str(server.getsockname()[1])
        done = launch('bash', 'dist_train.sh', 'c.py', '2', PORT=port)
    assert done.returncode == 2 and done.stderr.startswith(f"error: port '{port}' is ")
    assert done.stderr.count('\n') == 1


@pytest.mark.parametrize('name, value', [
    ('NNODES', 'x'), ('NNODES', '0'), ('NODE_RANK', '-1'), ('NODE_RANK', '1'),
    ('PORT', '2950O')])
def test_numbers_of_machines(name, value):
    done = launch('bash', 'dist_train.sh', 'c.py', '2', **{name: value})
    assert done.returncode == 2 and done.stderr.count('\n') == 1
    assert re.match(f"error: .*{name} is '{value}'.*expected", done.stderr)


def test_torchrun_that_cannot_start():
    done = launch('bash', 'dist_train.sh', 'c.py', '1', NNODES='2', NODE_RANK='1',
                  PORT='70000')
    line, = [line for line in done.stderr.splitlines() if line.startswith('error')]
    assert done.returncode == 1 and 'Traceback' not in done.stderr
    assert line.startswith('error: torchrun: ValueError: ') and '70000' in line


@pytest.mark.parametrize('tool', ['train.py', 'test.py'])
def test_another_package_of_this_name(monkeypatch, tool):
    for name in [name for name in sys.modules if name.startswith('mm_efficient')]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, 'mm_efficient', types.ModuleType('mm_efficient'))
    monkeypatch.setenv('PYTHONPATH', '/elsewhere')
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(TOOLS / tool), run_name='__main__')
    assert stop.value.code.startswith('error: cannot import name ')
    assert 'PYTHONPATH=/elsewhere' in stop.value.code
