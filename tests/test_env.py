"""tools/env.sh, with an installer that only notes what it is asked for."""
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.skipif(
    os.name == 'nt' or not (ROOT / 'tools' / 'env.sh').exists(),
    reason='runs in a checkout, with bash')

UV = """\
uv==0.13 \\
    --hash=sha256:01 \\
    --hash=sha256:23
    # via -r dev.in
"""
PINS = f'torch==1\n{UV}yapf==1\n'

FAKE_UV = f'''#!/usr/bin/env bash
echo "uv $*" >> "$LOG"
echo "${{UV_INDEX-unset}}" >> "$LOG.index"
echo "${{PYTHONPATH-unset}} ${{PIP_TARGET-unset}}" >> "$LOG.environment"
[ ! -e "$LOG.fail" ] || exit 1
sleep "${{UV_SECONDS:-0}}"
if [ "$1" = venv ]; then
  folder="${{!#}}"
  mkdir -p "$folder/bin"
  ln -sf "{sys.executable}" "$folder/bin/python"
fi
'''

# Python for a machine without uv: makes environments of itself, and its pip can
# fetch uv unless told not to.
FAKE_PYTHON = '''#!/usr/bin/env bash
case "$2" in
  venv) folder="${!#}"; mkdir -p "$folder/bin"; cp "$0" "$folder/bin/python" ;;
  pip)
    case "$*" in
      *"config list"*) echo "global.extra-index-url='http://a http://b'"; exit ;;
      *"/uv.txt") [ ! -e "$LOG.offline" ] || exit 1; cp "$FAKE_UV" "${0%/*}/uv" ;;
    esac
    echo "pip ${*:3}" >> "$LOG" ;;
esac
'''


class Checkout:
    """A checkout with the real env.sh and made-up pins."""

    def __init__(self, folder):
        self.root = folder / 'check out'  # paths with a space have to work
        self.log = folder / 'log'
        self.bin = folder / 'bin'
        for part in (self.root / 'tools', self.root / 'requirements', self.bin):
            part.mkdir(parents=True)
        shutil.copy(ROOT / 'tools' / 'env.sh', self.root / 'tools')
        (self.root / 'setup.py').write_text('# none')
        for stack in ('mmlab', 'onedl'):
            (self.root / 'requirements' / f'{stack}.txt').write_text(PINS)
        (self.bin / 'uv').write_text(FAKE_UV)
        (self.bin / 'uv').chmod(0o755)

    def start(self, *command, cwd=None, **environment):
        return subprocess.Popen(
            ['bash', str(self.root / 'tools' / 'env.sh'), *command],
            cwd=cwd or self.root, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**{k: v for k, v in os.environ.items()
                    if k not in ('MM_STACK', 'PYTHON')},
                 'PATH': f"{self.bin}{os.pathsep}{os.environ['PATH']}",
                 'LOG': str(self.log), **environment})

    def run(self, *command, **options):
        process = self.start(*command, **options)
        process.out, process.err = process.communicate(timeout=60)
        return process

    def calls(self):
        """Installer calls since the last look."""
        calls = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return calls


@pytest.fixture
def checkout(tmp_path):
    return Checkout(tmp_path)


def test_first_call_sets_up_and_the_next_does_not(checkout):
    first = checkout.run('echo', 'hello')
    assert (first.returncode, first.out) == (0, 'hello\n')  # the rest is on stderr
    assert 'environment is ready' in first.err
    venv, pins, project = checkout.calls()
    assert venv.endswith(f'{checkout.root}/.venv')
    assert f'-r {checkout.root}/requirements/mmlab.txt' in pins
    assert f'--no-deps --no-build-isolation -e {checkout.root}' in project
    start = time.monotonic()
    again = checkout.run('echo', 'hello')
    assert time.monotonic() - start < 1
    assert (again.out, again.err) == ('hello\n', '')
    assert checkout.calls() == []


@pytest.mark.parametrize('changed', ['requirements/mmlab.txt', 'setup.py'])
def test_changed_pins_are_installed_into_the_same_environment(changed, checkout):
    checkout.run('true')
    checkout.calls()
    (checkout.root / changed).write_text('torch==2')
    checkout.run('true')
    calls = checkout.calls()
    assert len(calls) == 2 and not any('--reinstall' in call for call in calls)


def test_the_other_stack_has_an_environment_of_its_own(checkout):
    result = checkout.run('bash', '-c', 'echo $VIRTUAL_ENV', MM_STACK='onedl')
    assert result.out == f'{checkout.root}/.venv-onedl\n'
    assert 'requirements/onedl.txt' in checkout.calls()[1]


def test_an_interrupted_set_up_is_repaired(checkout):
    checkout.run('true')
    (checkout.root / 'requirements' / 'mmlab.txt').write_text('torch==2')
    fail = Path(f'{checkout.log}.fail')
    fail.touch()
    failed = checkout.run('echo', 'hello')
    assert failed.returncode != 0 and failed.out == ''
    fail.unlink()
    checkout.calls()
    assert checkout.run('echo', 'hello').out == 'hello\n'
    assert any('--reinstall' in call for call in checkout.calls())


def test_calls_at_the_same_time_set_up_once(checkout):
    processes = [checkout.start('echo', 'hello', UV_SECONDS='0.3') for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in processes] == \
        ['hello\n'] * 3
    assert len(checkout.calls()) == 3  # one environment, pins, project


def test_settings_of_the_caller_do_not_steer_the_installation(checkout):
    result = checkout.run(
        'bash', '-c', 'echo $PYTHONPATH; command -v python', PYTHONPATH='/mine',
        PIP_TARGET='/elsewhere', VIRTUAL_ENV='/other', PYTHONHOME='/none')
    environment = Path(f'{checkout.log}.environment').read_text().splitlines()
    assert set(environment) == {'unset unset'}
    assert result.out == f'/mine\n{checkout.root}/.venv/bin/python\n'


@pytest.fixture
def without_uv(checkout):
    path = '/usr/bin:/bin'
    if shutil.which('uv', path=path):
        pytest.skip('uv is part of this system')
    python = checkout.bin / 'python3'
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)
    return dict(PATH=path, PYTHON=str(python), FAKE_UV=str(checkout.bin / 'uv'))


def test_uv_is_fetched_and_told_where_pip_looks(checkout, without_uv):
    assert checkout.run('true', **without_uv).returncode == 0
    fetch, pins, project = checkout.calls()
    assert fetch.startswith('pip install') and pins.startswith('uv pip install')
    assert all('--require-hashes' in call for call in (fetch, pins))
    assert (checkout.root / '.venv' / 'uv.txt').read_text() == UV
    assert project.startswith('uv pip install')
    assert Path(f'{checkout.log}.index').read_text() == 2 * 'http://a http://b\n'


@pytest.mark.parametrize('trouble', ['offline', 'fail'])  # of pip for uv, of uv
def test_pip_installs_everything_where_uv_cannot(trouble, checkout, without_uv):
    Path(f'{checkout.log}.{trouble}').touch()
    assert checkout.run('true', **without_uv).returncode == 0
    pins, project = checkout.calls()[-2:]
    assert pins.startswith('pip install') and 'mmlab.txt' in pins
    assert '--require-hashes' in pins
    assert project.startswith('pip install') and '--no-deps' in project


def test_command_keeps_its_folder_arguments_and_status(checkout, tmp_path):
    result = checkout.run('bash', '-c', 'pwd; echo "$1"; exit 3', '_', 'a  b',
                          cwd=tmp_path)
    assert (result.out, result.returncode) == (f'{tmp_path}\na  b\n', 3)


def test_bare_pytest_runs_the_checkouts_tests_from_anywhere(checkout, tmp_path):
    checkout.run('true')
    fake = checkout.root / '.venv' / 'bin' / 'pytest'
    fake.write_text('#!/usr/bin/env bash\npwd\n')
    fake.chmod(0o755)
    (tmp_path / 'own').mkdir()
    inside = checkout.root / 'tools'
    assert checkout.run('pytest', '-x', cwd=tmp_path).out == f'{checkout.root}\n'
    assert checkout.run('pytest', 'own::test', cwd=tmp_path).out == f'{tmp_path}\n'
    assert checkout.run('pytest', cwd=inside).out == f'{inside}\n'


@pytest.mark.parametrize('command, environment, message', [
    (['true'], dict(MM_STACK='mmcv'), "'mmlab' or 'onedl', got 'mmcv'"),
    (['true'], dict(PYTHON='/no/python'), '/no/python is not a Python 3.10'),
    ([], {}, 'Usage: bash tools/env.sh CMD'),
])
def test_wrong_use_is_explained(command, environment, message, checkout):
    result = checkout.run(*command, **environment)
    assert result.returncode == 2 and message in result.err
    assert checkout.calls() == []


def test_help_sets_nothing_up(checkout):
    result = checkout.run('--help')
    assert result.returncode == 0 and 'MM_STACK' in result.out
    assert not (checkout.root / '.venv').exists()
