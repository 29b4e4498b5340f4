"""Imported before any test module: repairs precede every import of mmcv.ops."""
import pytest
from mmengine.registry import DefaultScope

import mm_efficient  # noqa: F401


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
