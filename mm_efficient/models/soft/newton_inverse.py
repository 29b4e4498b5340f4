"""Pseudo-inverses of SOFT's landmark matrices by Newton's iteration.

The iteration X <- 2 X - X A X, started at a small multiple of A, is a spectral
filter: after 20 steps it maps an eigenvalue mu of A to
``(1 - (1 - alpha mu^2)^(2^20)) / mu``, which is 1 / mu for large mu and 0 for
small. Networks were trained with this filter; an exact inverse is a different
function. See SOFT (https://arxiv.org/abs/2110.11945) and its journal version
(https://arxiv.org/abs/2207.03341).

Every matrix is a Gaussian kernel matrix: symmetric, with entries in [0, 1] and a unit
diagonal. Batches are (B, heads, m, m); nothing is shared between images. Arithmetic
runs in float32 or float64: in half precision ``alpha`` underflows from about 257
landmarks on.
"""
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ...kernels import MAX_LANDMARKS, use_kernel
from ..layers import add_scaled, backward_without_autocast, in_float32

NEWTON_STEPS = 20
REGULARIZER = 0.01
# Start factor of the normalised family: halved, at most MAX_HALVINGS times,
# while the largest column sum of |I - alpha A A| exceeds COLUMN_SUM_LIMIT.
MAX_HALVINGS = 10
COLUMN_SUM_LIMIT = 1.01
# All steps as a function of an ONNX file. ONNX Runtime runs the loop as fast as a
# sequence, which it would optimise for seconds as it loads a deep model.
ONNX_STEPS = """
NewtonSteps <steps> (kernel, start) => (inverse) {
    steps = Constant <value_int: int = @steps> ()
    inverse = Loop (steps, , start) <body = step (
            int64 i, bool go_on, float[b, h, m, m] x)
        => (bool still, float[b, h, m, m] next) {
        still = Identity (go_on)
        twice = Add (x, x)
        right = MatMul (kernel, x)
        product = MatMul (x, right)
        next = Sub (twice, product)
    }>
}"""
_calls_onnx_steps = False


@in_float32
def regularized_inverse(kernel: Tensor, steps: int = NEWTON_STEPS) -> Tensor:
    """Invert ``kernel + 0.01 I``, as plain SOFT does.

    Args:
        kernel (Tensor): Landmark kernel matrices, (B, heads, m, m).
        steps (int): Newton steps. Defaults to 20.

    Returns:
        Tensor: (B, heads, m, m). Its gradient is the published one, that of an exact
        inverse, ``-M^T G M^T``; only the result is saved for it.
    """
    m = kernel.shape[-1]
    if use_kernel(kernel) and m <= MAX_LANDMARKS:
        return torch.ops.mm_efficient.regularized_inverse(kernel, steps, REGULARIZER)
    row_sum = kernel.detach().sum(-1).amax(-1)[..., None, None]  # (B, heads, 1, 1)
    identity = torch.eye(m, dtype=kernel.dtype, device=kernel.device)
    regularized = add_scaled(kernel, identity, REGULARIZER)
    alpha = 1.8 * row_sum.pow(-2)
    if torch.jit.is_tracing():  # TorchScript has no autograd functions
        return _iterate(regularized, alpha, steps)
    return _ImplicitInverse.apply(regularized, alpha, steps)


@in_float32
def normalized_inverse(kernel: Tensor, steps: int = NEWTON_STEPS) -> Tensor:
    """Compute the degree-normalised inverse ``D^-1/2 A^-1 D^-1/2`` of SOFT-Norm.

    D holds the row sums of A. The start factor is chosen per image. The published
    code chooses it per batch, which makes an image's output depend on the rest of the
    batch; for a single image both are the same.

    Args:
        kernel (Tensor): Landmark kernel matrices A, (B, heads, m, m).
        steps (int): Newton steps. Defaults to 20.

    Returns:
        Tensor: (B, heads, m, m), differentiable through everything including the
        start factor, without saving the iterates.
    """
    if use_kernel(kernel) and kernel.shape[-1] <= MAX_LANDMARKS:
        return torch.ops.mm_efficient.normalized_inverse(
            kernel, steps, MAX_HALVINGS, COLUMN_SUM_LIMIT)
    degree = kernel.sum(-1)  # (B, heads, m)
    inverse = newton_iteration(kernel, _start_factor(kernel, degree), steps)
    scale = degree.rsqrt()
    return scale[..., :, None] * inverse * scale[..., None, :]


def _start_factor(kernel: Tensor, degree: Tensor) -> Tensor:
    """alpha = 2 / rho^2, halved as often as the image needs, (B, 1, 1, 1).

    A column of ``I - s A A`` with diagonal d and sum c of A A has the absolute sum
    ``max(1 + s (c - 2 d), s c - 1)``, because entries of A A are non-negative. So there
    is a largest s, and the number of halvings follows without trying them.
    """
    square = degree.amax((1, 2), keepdim=True).square()  # 2 / alpha, (B, 1, 1)
    with torch.no_grad():
        norm = torch.linalg.vector_norm(kernel, dim=-1)  # its square is d
        column_sum = (kernel @ degree[..., None])[..., 0]  # c, (B, heads, m)
        excess = add_scaled(column_sum, norm.square(), -2)
        bound = torch.maximum(excess / (COLUMN_SUM_LIMIT - 1),
                              column_sum / (COLUMN_SUM_LIMIT + 1))
        ratio = square / bound.amax((1, 2), keepdim=True)  # 2 * largest s over alpha
        factor = ratio.log2().floor().clamp(1 - MAX_HALVINGS, 1).exp2()
    return (factor / square)[..., None]


def newton_iteration_reference(kernel: Tensor, alpha: Tensor, steps: int) -> Tensor:
    """Plain form of :func:`newton_iteration`; autograd saves every iterate."""
    x = alpha * kernel
    for _ in range(steps):
        x = 2 * x - x @ kernel @ x
    return x


@in_float32
def newton_iteration(kernel: Tensor, alpha: Tensor, steps: int) -> Tensor:
    """Repeat X <- 2 X - X A X from X = alpha A, for symmetric A.

    Args:
        kernel (Tensor): Symmetric matrices A, (B, heads, m, m).
        alpha (Tensor): Start factors, broadcastable to A.
        steps (int): Number of steps.

    Returns:
        Tensor: (B, heads, m, m), with gradients for ``kernel`` (symmetric as well)
        and ``alpha``. Memory does not grow with ``steps``.
    """
    if torch.jit.is_tracing():
        return _iterate(kernel, alpha, steps)
    return _NewtonIteration.apply(kernel, alpha, steps)


@contextlib.contextmanager
def onnx_steps() -> Iterator[None]:
    """Trace all steps as one call of ``ONNX_STEPS``; values mean nothing inside."""
    global _calls_onnx_steps
    _calls_onnx_steps = True
    try:
        yield
    finally:
        _calls_onnx_steps = False


def _iterate(kernel: Tensor, alpha: Tensor, steps: int) -> Tensor:
    shape = kernel.shape
    x = alpha * kernel
    if _calls_onnx_steps:
        return torch.onnx.ops.symbolic(
            'mm_efficient::NewtonSteps', (kernel, x), dict(steps=steps), dtype=x.dtype,
            shape=shape, version=1)
    x, kernel = x.flatten(0, 1), kernel.flatten(0, 1)  # (B * heads, m, m)
    for _ in range(steps):
        x = torch.baddbmm(x, x, kernel @ x, beta=2, alpha=-1)
    return x.view(shape)


class _ImplicitInverse(Function):
    """Newton's iteration with the gradient of an exact inverse."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, alpha: Tensor, steps: int) -> Tensor:
        inverse = _iterate(matrix, alpha, steps)
        ctx.save_for_backward(inverse)
        return inverse

    @staticmethod
    @once_differentiable
    @backward_without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        inverse, = ctx.saved_tensors
        transposed = inverse.transpose(-1, -2)
        return -(transposed @ grad @ transposed), None, None


class _NewtonIteration(Function):
    """Newton's iteration, differentiated without saving the iterates.

    The result is a polynomial p(A). For symmetric A the derivative of a matrix
    polynomial is self-adjoint, so the gradient for an incoming G is the directional
    derivative of p at A in direction G: a tangent recursion alongside the iteration
    replaces reverse mode. As A is symmetric, only the symmetric part of G counts.

    The derivative by alpha follows from scaling, ``X(s A, alpha / s^2) =
    X(A, alpha) / s``: differentiated at s = 1 and multiplied by G,
    ``2 alpha <G, dX / dalpha> = <G, X> + <gradient by A, A>``.
    """

    @staticmethod
    def forward(ctx: Any, kernel: Tensor, alpha: Tensor, steps: int) -> Tensor:
        ctx.save_for_backward(kernel, alpha)
        ctx.steps = steps
        return _iterate(kernel, alpha, steps)

    @staticmethod
    @once_differentiable
    @backward_without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        kernel, alpha = ctx.saved_tensors
        m = kernel.shape[-1]
        direction = (grad + grad.transpose(-1, -2)) / 2
        x = alpha * kernel
        tangent = alpha * direction  # derivative of x as A moves along the gradient
        for _ in range(ctx.steps):
            # One right factor serves both: (B, heads, 2 m, m)
            moved = torch.cat([x, tangent], -2) @ (kernel @ x)
            x_moved, tangent_moved = moved.split(m, -2)
            tangent = (2 * tangent - tangent_moved - tangent_moved.transpose(-1, -2)
                       - x @ (direction @ x))
            x = 2 * x - x_moved
        by_alpha = (direction * x + tangent * kernel).sum((-2, -1), keepdim=True)
        grad_alpha = (by_alpha / (2 * alpha)).sum_to_size(alpha.shape)
        return tangent, grad_alpha, None
