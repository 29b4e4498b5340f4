"""Every family on fake CUDA tensors: devices, types and waiting, without a GPU.

Fake tensors have a device, a type and a shape, but no values. In a process of its own,
because what lets autograd run on them cannot be undone.
"""
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent
COMPILER = os.environ.get('CXX', 'c++')


@pytest.fixture(scope='module')
def results(tmp_path_factory):
    """By variant, what a training step did."""
    if not shutil.which(COMPILER):
        pytest.skip(f'needs a C++ compiler, {COMPILER} was not found')
    if not sys.platform.startswith('linux'):
        pytest.skip('replaces a function in a way that only Linux has')
    folder = tmp_path_factory.mktemp('fake_cuda')
    root = Path(torch.__file__).parent
    built = subprocess.run(
        [COMPILER, '-shared', '-fPIC', '-std=c++17', HERE / 'hooks.cpp', '-o',
         folder / 'hooks.so', f'-I{root}/include', f'-L{root}/lib', '-ltorch_cpu',
         '-lc10', f'-Wl,-rpath,{root}/lib'], capture_output=True, text=True)
    if built.returncode:
        pytest.skip('PyTorch has no headers that compile here: '
                    + built.stderr.partition('\n')[0])
    subprocess.run(
        [sys.executable, HERE / 'training_step.py', folder], check=True,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(
            [str(HERE.parents[1]), str(HERE.parent / 'models'),
             str(HERE.parent / 'mmcv_ops'),
             os.environ.get('PYTHONPATH', '')])))
    return json.loads((folder / 'results.json').read_text())


def test_gpus_are_hidden_from_these_tests():
    assert os.environ['CUDA_VISIBLE_DEVICES'] == ''


def test_nothing_leaves_the_gpu(results):
    assert len(results) > 7
    for name, found in results.items():
        assert not found['on_cpu'], f'{name}: made on the CPU'
        assert not found['waits'], f'{name}: read by the CPU'
        assert not found.get('without_gradient'), name
        # Forward, recomputation and backward were seen
        small = 'focal' in name or 'operator' in name
        assert found['kernels'] > (5 if small else 500), name
