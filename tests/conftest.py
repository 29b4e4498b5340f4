"""Imported before any test module: repairs precede every import of mmcv.ops."""
import json
import os
import runpy
from pathlib import Path

# Tests run in several processes, see pyproject.toml: one thread each, also for the
# tools that they start. Read when PyTorch is imported.
os.environ.setdefault('OMP_NUM_THREADS', '1')

import pytest
from mmengine.registry import DefaultScope

import mm_efficient  # noqa: F401

REFERENCE = Path(__file__).parent / 'reference'


@pytest.fixture(autouse=True, scope='session')
def unformatted_configs():
    """Runners write their config four times; formatting takes longer than the rest."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('mmengine.config.config.FormatCode',
                      lambda text, **options: (text, True))
        yield


@pytest.fixture(autouse=True)
def no_default_scope():
    """A runner leaves its scope behind, in which later tests would build."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def no_checkpoints_left(request):
    """Remove a test's checkpoints: pytest keeps folders, and they are gigabytes."""
    yield
    folder = request.node.funcargs.get('tmp_path')
    for path in folder.rglob('*.pth') if folder else ():
        if path.is_file():
            path.unlink()


@pytest.fixture(scope='session')
def published():
    """Function from a variant to synthetic tensors like its published ones."""
    synth_state_dict = runpy.run_path(
        str(REFERENCE / 'synth.py'))['synth_state_dict']

    def make(variant='soft_tiny', seed=0):
        (path,) = REFERENCE.glob(f'*/{variant}.json')
        manifest = json.loads(path.read_text())
        return synth_state_dict(manifest['state_dict'], seed)

    return make
