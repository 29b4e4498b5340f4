"""What pip builds: the package, and mm_efficient/.mim beside it."""
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGED = ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'LICENSE', 'README.md',
            'model-index.yml', 'requirements', 'mm_efficient', 'configs', 'tools')

pytestmark = pytest.mark.skipif(
    not (ROOT / 'setup.py').exists(), reason='runs in a checkout')


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy, because builds leave folders behind."""
    folder = tmp_path_factory.mktemp('checkout')
    ignore = shutil.ignore_patterns('__pycache__', '.mim')
    for name in PACKAGED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignore)
        elif (ROOT / name).exists():
            shutil.copy(ROOT / name, folder / name)
    return folder


def python(*arguments, cwd=None):
    environment = {**os.environ, 'PIP_DISABLE_PIP_VERSION_CHECK': '1'}
    environment.pop('PYTHONPATH', None)
    result = subprocess.run([sys.executable, *map(str, arguments)], cwd=cwd,
                            env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def expected_files(suffix='.py'):
    return {str(path.relative_to(ROOT)) for folder in ('configs', 'tools')
            for path in (ROOT / folder).rglob(f'*{suffix}')}


@pytest.fixture(scope='module')
def wheel(checkout, tmp_path_factory):
    folder = tmp_path_factory.mktemp('wheel')
    python('-m', 'pip', 'wheel', '--no-deps', '--no-build-isolation', '--no-index',
           '-w', folder, checkout)
    return next(folder.glob('mm_efficient-*.whl'))


def test_wheel_carries_configs_and_tools(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert 'mm_efficient/models/base.py' in names
    assert 'mm_efficient/.mim/model-index.yml' in names
    content = {name.removeprefix('mm_efficient/.mim/') for name in names
               if name.startswith('mm_efficient/.mim/')}
    expected = expected_files() | expected_files('.sh') | expected_files('.yml')
    assert {name for name in expected
            if not name.startswith('tools/model_zoo/')} <= content
    assert not any('__pycache__' in name or 'model_zoo' in name for name in names)
    assert {name.split('/')[0] for name in names} == {
        'mm_efficient', next(n for n in names if '.dist-info/' in n).split('/')[0]}


def test_wheel_works_without_a_checkout(wheel, tmp_path):
    """Its own configs and tools are found, from an empty folder."""
    installed, empty = tmp_path / 'installed', tmp_path / 'empty'
    empty.mkdir()
    zipfile.ZipFile(wheel).extractall(installed)
    printed = python('-c', f"""if True:
        import runpy, sys
        sys.path.insert(0, {str(installed)!r})
        asked = []
        sys.addaudithook(lambda event, _: asked.append(event) if event in (
            'socket.connect', 'socket.getaddrinfo', 'socket.sendto') else None)
        import mm_efficient
        assert not asked, asked  # nobody is asked for anything on import
        import mmpretrain
        from mm_efficient.runs import load_config
        print(load_config('soft_tiny_maskrcnn_1x.py').filename)
        print(mmpretrain.get_model('swiftformer-xs_8xb256_in1k')._config.filename)
        tools = mm_efficient.__path__[0] + '/.mim/tools/analysis_tools'
        sys.argv = ['get_flops.py', 'swiftformer_xs', '--shape', '64']
        runpy.run_path(tools + '/get_flops.py', run_name='__main__')
        """, cwd=empty)
    configs = installed / 'mm_efficient' / '.mim' / 'configs'
    assert str(configs / 'det' / 'soft_tiny_maskrcnn_1x.py') in printed
    assert str(configs / 'cls' / 'swiftformer_xs_300e.py') in printed
    assert 'swiftformer_xs' in printed and '64' in printed
    assert not list(empty.iterdir())


def test_wheel_leaves_the_choice_of_stack_open(wheel):
    archive = zipfile.ZipFile(wheel)
    metadata = archive.read(next(
        name for name in archive.namelist() if name.endswith('METADATA'))).decode()
    requirements = [line for line in metadata.splitlines()
                    if line.startswith('Requires-Dist: ')]
    unconditional = [line for line in requirements if 'extra ==' not in line]
    assert any('torch>=' in line for line in unconditional)
    assert not any(': mm' in line or 'onedl' in line for line in unconditional)
    assert not any('==' in line.split(';')[0] for line in requirements)
    assert {line.split(': ')[1] for line in metadata.splitlines()
            if line.startswith('Provides-Extra')} >= {'det', 'seg', 'all', 'dev'}


@pytest.mark.parametrize('stack', ['mmlab', 'onedl'])
def test_pins_have_hashes_and_known_licences(stack):
    pins = (ROOT / 'requirements' / f'{stack}.txt').read_text()
    assert '://' not in pins  # of an index
    listed = set((ROOT / 'docs' / 'licences.md').read_text().replace(',', ' ').split())
    names = re.findall(r'^([\w.-]+)==[^\n]+\\\n    --hash=sha256:', pins, re.M)
    assert len(names) == len(re.findall(r'^[\w.-]+==', pins, re.M)) > 100
    assert set(names) <= listed


def test_sdist_carries_what_a_wheel_is_built_from(checkout):
    python('setup.py', '-q', 'sdist', cwd=checkout)
    archive = tarfile.open(next((checkout / 'dist').glob('*.tar.gz')))
    names = {name.split('/', 1)[-1] for name in archive.getnames()}
    assert {'setup.py', 'LICENSE', 'model-index.yml',
            'requirements/mmlab.txt', 'requirements/onedl.txt'} <= names
    assert expected_files() | expected_files('.sh') | expected_files('.yml') <= names


def test_editable_install_links_to_the_checkout(checkout, tmp_path):
    python('-m', 'pip', 'install', '--no-deps', '--no-build-isolation', '--no-index',
           '--target', tmp_path / 'site', '-e', checkout)
    mim = checkout / 'mm_efficient' / '.mim'
    for name in ('configs', 'tools', 'model-index.yml'):
        assert (mim / name).resolve() == checkout / name
