"""The focal loss against MMDetection's own in Python."""
import pytest
import torch
from mmcv import ops
from recorded import HALF
from torch import nn


@pytest.mark.parametrize('gamma, alpha', [(2.0, 0.25), (0.5, 0.6), (0.0, 0.5)])
def test_focal_loss_is_mmdets_own_in_python(gamma, alpha):
    focal_loss = pytest.importorskip('mmdet.models.losses.focal_loss')
    torch.manual_seed(0)
    logits = (3 * torch.randn(40, 5)).double().requires_grad_()
    target = torch.randint(6, (40, ))  # 5 is background
    weight = torch.rand(40, 5).double()
    one_hot = nn.functional.one_hot(target, 6)[:, :5]
    expected = focal_loss.py_sigmoid_focal_loss(
        logits, one_hot, gamma=gamma, alpha=alpha, reduction='none')
    expected_grad, = torch.autograd.grad((expected * weight).sum(), logits)
    loss = ops.sigmoid_focal_loss(logits, target, gamma, alpha, None, 'none')
    grad, = torch.autograd.grad((loss * weight).sum(), logits)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(grad, expected_grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('reduction, divisor', [('mean', 4), ('sum', 1)])
def test_focal_loss_class_weights_and_reduction(reduction, divisor):
    logits = torch.randn(4, 3, requires_grad=True)
    target = torch.tensor([0, 2, 3, 1])
    weight = torch.tensor([2., 3, 5])
    rows = ops.sigmoid_focal_loss(logits, target, 2., .25, None, 'none')
    # A sample's row is weighted by its class; background by one.
    expected = (rows * torch.tensor([[2.], [5], [1], [3]])).sum() / divisor
    expected_grad, = torch.autograd.grad(expected, logits)
    loss = ops.sigmoid_focal_loss(logits, target, 2., .25, weight, reduction)
    grad, = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(grad, expected_grad)


@pytest.mark.parametrize('dtype', [torch.float32, *HALF])
@pytest.mark.parametrize('gamma', [0.5, 2.0])
def test_focal_loss_of_confident_logits_is_finite(gamma, dtype):
    logits = torch.tensor([[100., -100], [-100, 100]], dtype=dtype,
                          requires_grad=True)
    target = torch.tensor([0, 0])  # first row right, second wrong
    loss = ops.sigmoid_focal_loss(logits, target, gamma, .25, None, 'none')
    loss.sum().backward()
    expected = torch.tensor([[0., 0], [25, 75]], dtype=dtype)
    assert torch.equal(loss, expected) and loss.dtype == dtype
    slope = torch.tensor([[0., 0], [-.25, .75]], dtype=dtype)
    assert torch.equal(logits.grad, slope)
