"""RoIAlign against mmcv's compiled operator and finite differences."""
import importlib

import pytest
import torch
from mmcv import ops
from recorded import HALF, cases
from torch._subclasses.fake_tensor import FakeTensorMode

from mm_efficient import mmcv_ops


@pytest.mark.parametrize('case', cases('roi_align'))
def test_roi_align_as_recorded(case, arrays):
    recorded = {name: arrays[f"{case['case']}/{name}"]
                for name in ('input', 'rois', 'output', 'grad_output', 'grad_input')}
    features = recorded['input'].clone().requires_grad_()
    output = ops.roi_align(features, recorded['rois'], case['output_size'],
                           case['spatial_scale'], case['sampling_ratio'],
                           case['pool_mode'], case['aligned'])
    output.backward(recorded['grad_output'])
    torch.testing.assert_close(output, recorded['output'], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(
        features.grad, recorded['grad_input'], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize('aligned', [False, True])
@pytest.mark.parametrize('sampling_ratio', [0, 2])
def test_roi_align_gradient_in_float64(sampling_ratio, aligned):
    torch.manual_seed(0)
    features = torch.rand(2, 2, 6, 7, dtype=torch.float64, requires_grad=True)
    rois = torch.tensor([[0, 1.2, 2.1, 20.3, 17.9], [1, -3, 0.4, 9.7, 30]]).double()
    assert torch.autograd.gradcheck(
        lambda x: ops.roi_align(x, rois, (2, 3), 0.25, sampling_ratio, 'avg', aligned),
        features)


@pytest.mark.parametrize('dtype', HALF)
def test_roi_align_in_half_precision_computes_in_float32(dtype):
    torch.manual_seed(0)
    features = torch.rand(1, 3, 12, 12).to(dtype)
    rois = torch.tensor([[0, 3., 4, 40, 36]]).to(dtype)
    grads = []
    for cast in (dtype, torch.float32):
        leaf = features.to(cast, copy=True).requires_grad_()
        output = ops.roi_align(leaf, rois.to(cast), (7, 7), 0.25, 0, 'avg', True)
        output.backward(torch.ones_like(output))
        assert output.dtype == leaf.grad.dtype == cast
        grads.append((output.detach(), leaf.grad))
    for half, full in zip(*grads):
        assert torch.equal(half, full.to(dtype))


def test_roi_align_without_rois():
    features = torch.rand(2, 3, 8, 8, requires_grad=True)
    output = ops.roi_align(features, torch.zeros(0, 5), (7, 7), 0.25, 0, 'avg', True)
    assert output.shape == (0, 3, 7, 7)
    output.sum().backward()
    assert torch.equal(features.grad, torch.zeros(2, 3, 8, 8))


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def test_deterministic_roi_align_is_a_kernel_on_cuda(deterministic, monkeypatch):
    """``torchvision.ops.roi_align`` is Python then, and samples whole maps per RoI."""
    calls = []
    module = importlib.import_module('torchvision.ops.roi_align')
    monkeypatch.setattr(module, '_roi_align', lambda *args: calls.append(args))
    monkeypatch.setattr(
        module, 'is_compile_supported', lambda device: True, raising=False)
    with FakeTensorMode():
        features = torch.rand(1, 2, 8, 8, device='cuda')
        output = torch.empty(3, 2, 7, 7, device='cuda')
        mmcv_ops.roi_align_forward(
            features, torch.rand(3, 5, device='cuda'), output, None, None, 7, 7, 0.25,
            0, 1, True)
    assert not calls
