import pytest
import torch
from torch import nn

from mm_efficient.models.soft import gaussian_attention as ops


def random_inputs(tokens=150, landmarks=20, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)

    def make(*shape):
        x = 0.4 * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return x.to(dtype).requires_grad_()
    return (make(2, 3, tokens, 8), make(2, 3, landmarks, 8), make(2, 3, tokens, 8),
            make(2, 3, landmarks, landmarks))


def value_and_gradients(function, inputs):
    out = function(*inputs)
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return (out, *torch.autograd.grad((out * weight).sum(), inputs))


def test_kernel_is_the_gaussian_of_distances():
    query, landmarks, *_ = random_inputs()
    expected = torch.exp(-torch.cdist(query, landmarks).square() / 2)
    torch.testing.assert_close(ops.gaussian_kernel(query, landmarks), expected)


def test_landmark_kernel_has_an_exact_diagonal():
    """It is symmetric, too, also where products round asymmetrically."""
    landmarks = 100 + random_inputs(landmarks=11, dtype=torch.float32)[1]
    for layout in (landmarks, landmarks.mT.contiguous().mT, landmarks.double()):
        kernel = ops.landmark_kernel(layout)
        assert (kernel.diagonal(dim1=-2, dim2=-1) == 1).all()
        assert (kernel <= 1).all()
        assert torch.equal(kernel, kernel.mT)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float64, 1e-12),
                                              (torch.float32, 1e-5)])
@pytest.mark.parametrize('entries', [2**30, 6 * 20 * 64, 1])
def test_chunks_agree_with_the_reference(monkeypatch, entries, dtype, tolerance):
    monkeypatch.setitem(ops.CHUNK_ENTRIES, 'cpu', entries)
    inputs = random_inputs(dtype=dtype)
    fast = value_and_gradients(ops.gaussian_attention, inputs)
    reference = value_and_gradients(ops.gaussian_attention_reference, inputs)
    for a, b in zip(fast, reference):
        assert (a - b).abs().max() <= tolerance * b.abs().max()


def test_gradient_is_right_numerically():
    inputs = random_inputs(tokens=5, landmarks=3)
    assert torch.autograd.gradcheck(ops.gaussian_attention, inputs)


def test_kernel_matrix_is_never_held(monkeypatch):
    """No tensor of the forward or backward pass has tokens x landmarks entries."""
    monkeypatch.setitem(ops.CHUNK_ENTRIES, 'cpu', 6 * 100 * 16)
    tokens, landmarks = 4000, 100
    inputs = random_inputs(tokens, landmarks)
    largest = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest.append(out.numel())
            return out
    with Watch():
        value_and_gradients(ops.gaussian_attention, inputs)
    assert max(largest) < 6 * tokens * landmarks / 5
    with Watch():
        ops.gaussian_attention_reference(*inputs)
    assert max(largest) >= 6 * tokens * landmarks


def test_wrong_shapes_do_not_broadcast_silently():
    query, landmarks, value, inverse = random_inputs()
    with pytest.raises(RuntimeError):
        ops.gaussian_attention(query, landmarks, value[:, :, :-1], inverse)
    with pytest.raises(RuntimeError):
        nn.functional.linear(ops.gaussian_attention(query, landmarks, value,
                                                    inverse[..., :-1, :-1]),
                             torch.eye(8).double())
