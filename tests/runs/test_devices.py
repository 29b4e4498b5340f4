"""GPUs that PyTorch cannot use, and determinism on those it can."""
import os

import pytest
import torch
from mmengine.config import Config

from mm_efficient.runs import devices, prepare_training


@pytest.fixture
def messages(tmp_path, monkeypatch):
    """What is logged on a machine with a GPU that PyTorch cannot use."""
    found = []
    (tmp_path / 'nvidia0').touch()
    monkeypatch.setattr(devices, 'FIRST_GPU', tmp_path / 'nvidia0')
    monkeypatch.setattr(devices, 'print_log',
                        lambda text, logger, level: found.append(text))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    return found


def test_a_gpu_that_cannot_be_used_is_reported(messages, tiny):
    prepare_training('soft_tiny_300e.py', mini=True, pretrained='none', work_dir='work')
    assert len(messages) == 1 and 'Update the driver' in messages[0]


@pytest.mark.parametrize('case', ['hidden', 'used', 'none'])
def test_no_report_without_a_reason(messages, case, monkeypatch, tmp_path):
    if case == 'hidden':
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '')
    elif case == 'used':
        monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    else:
        monkeypatch.setattr(devices, 'FIRST_GPU', tmp_path / 'none')
    devices.warn_of_unused_gpu()
    assert not messages


@pytest.mark.parametrize('deterministic, before, after', [
    (True, None, ':4096:8'), (True, ':16:8', ':16:8'), (False, None, None)])
def test_determinism_reaches_cublas(deterministic, before, after, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', before or '')
    if before is None:
        monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    devices.allow_determinism(Config(dict(
        randomness=dict(deterministic=deterministic))))
    assert os.environ.get('CUBLAS_WORKSPACE_CONFIG') == after


def test_training_is_deterministic_on_request(tiny, monkeypatch):
    monkeypatch.setenv('CUBLAS_WORKSPACE_CONFIG', '')
    monkeypatch.delenv('CUBLAS_WORKSPACE_CONFIG')
    prepare_training('soft_tiny_300e.py', mini=True, pretrained='none', work_dir='work',
                     cfg_options={'randomness.deterministic': True})
    assert os.environ['CUBLAS_WORKSPACE_CONFIG'] == ':4096:8'
