"""What the tests on a GPU share; docs/gpu.md says how to run them."""
import json
import os
import platform
import sys
import time
from pathlib import Path

import pytest
import torch
from filelock import FileLock

TESTS = Path(__file__).parents[1]
# Models and runners of the tests for the CPU
sys.path[:0] = [
    str(TESTS / room) for room in ('models', 'engine', 'deploy', 'mmcv_ops')]

import mm_efficient  # noqa: E402
from mm_efficient.files import whole_file  # noqa: E402

FIGURES = Path(os.environ.get('MM_EFFICIENT_FIGURES',
                              TESTS.parent / 'docs' / 'benchmark' / 'gpu'))


@pytest.fixture(scope='session')
def device():
    if not torch.cuda.is_available():
        pytest.skip('needs an NVIDIA GPU')
    return torch.device('cuda')


@pytest.fixture(autouse=True)
def clean_device(device):
    """Float32 products in full precision, and no memory of the test before.

    A training that fails leaves its settings of cuDNN behind.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [(each, name, getattr(each, name)) for each, name in (
        (cudnn, 'allow_tf32'), (cudnn, 'deterministic'), (cudnn, 'benchmark'),
        (matmul, 'allow_tf32'))]
    cudnn.allow_tf32 = matmul.allow_tf32 = False
    torch.cuda.empty_cache()
    yield
    torch.cuda.set_sync_debug_mode('default')
    torch.use_deterministic_algorithms(False)
    for each, name, value in before:
        setattr(each, name, value)


@pytest.fixture
def figures(request, device, tmp_path_factory):
    """Dict of what a test measures, added to a JSON file of its module's name.

    After every test, because a part may be stopped.
    """
    measured = {}
    yield measured
    properties = torch.cuda.get_device_properties(device)
    versions = dict(
        mm_efficient=mm_efficient.__version__, torch=torch.__version__,
        cuda=torch.version.cuda, cudnn=torch.backends.cudnn.version(),
        python=platform.python_version())
    name = Path(request.node.path).stem.removeprefix('test_cuda_')
    path = FIGURES / f'{name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    # Other tests, maybe in other processes of pytest-xdist, measure the rest
    folder = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        folder = folder.parent
    so_far = folder / path.name
    with FileLock(f'{so_far}.lock'):
        if so_far.exists():
            measured = json.loads(so_far.read_text()) | measured
        so_far.write_text(json.dumps(measured))
        with whole_file(path) as draft:
            Path(draft).write_text(json.dumps(dict(
                device=properties.name, memory_gb=properties.total_memory / 1e9,
                date=time.strftime('%Y-%m-%d'), versions=versions,
                figures=dict(sorted(measured.items()))), indent=1) + '\n')
