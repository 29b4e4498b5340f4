"""The closed form of ReduceFormer's attention."""
import pytest
import torch

from mm_efficient.models.reduceformer.reduction_attention import (
    reduction_attention,
    reduction_attention_reference,
)


def maps(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, 2, 24, 9, 14, generator=generator, dtype=dtype)


def test_equals_the_published_order_of_operations():
    inputs = maps()
    out = reduction_attention(*inputs)
    expected = reduction_attention_reference(*inputs)
    assert (out - expected).abs().max() < 1e-13 * expected.abs().max()


def test_gradients_equal_those_of_the_published_order():
    grads = []
    for function in (reduction_attention, reduction_attention_reference):
        inputs = [x.requires_grad_() for x in maps().clone()]
        function(*inputs).square().sum().backward()
        grads.append([x.grad for x in inputs])
    for grad, expected in zip(*grads):
        assert (grad - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
@pytest.mark.parametrize('role', [0, 1])
def test_nothing_rectified_left_is_zero(role, dtype):
    """Queries or keys without a positive entry: zero, not NaN, as published."""
    inputs = maps(dtype=dtype)
    inputs[role] = -inputs[role].abs()
    inputs.requires_grad_()
    out = reduction_attention(*inputs)
    assert torch.equal(out, torch.zeros_like(out))
    out.sum().backward()
    assert inputs.grad.isfinite().all()


def test_one_position_without_a_query():
    inputs = maps()
    inputs[0, :, :, 2, 3] = -1
    out = reduction_attention(*inputs)
    assert not out[:, :, 2, 3].any()
    assert out[:, :, 2, 4].any() and out.isfinite().all()


def test_scaling_takes_out_the_number_of_positions():
    inputs = maps()
    repeated = inputs.repeat(1, 1, 1, 2, 3)  # six times the positions, same values
    small, large = (reduction_attention(*x) for x in (inputs, repeated))
    torch.testing.assert_close(large[..., :9, :14], 36 * small)
    small, large = (reduction_attention(*x, pretrain_tokens=9 * 14)
                    for x in (inputs, repeated))
    torch.testing.assert_close(large[..., :9, :14], small)
    assert torch.equal(small, reduction_attention(*inputs))
