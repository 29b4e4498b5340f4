"""Newton's iteration for all landmark matrices of SOFT in one launch.

A program inverts one matrix, padded to a power of two, and keeps it in on-chip memory
during all steps. Formulas: :mod:`mm_efficient.models.soft.newton_inverse`. Products are
in full float32.
"""
# Triton's functions have no types:
# mypy: allow-untyped-defs, allow-incomplete-defs
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

WARPS = 8


@triton.jit
def _product(a, b, BLOCK: tl.constexpr):
    """Product in two halves: all operands at once would not fit into registers."""
    HALF: tl.constexpr = BLOCK // 2
    left, right = tl.split(tl.permute(tl.reshape(a, (BLOCK, 2, HALF)), (0, 2, 1)))
    upper, lower = tl.split(tl.permute(tl.reshape(b, (2, HALF, BLOCK)), (1, 2, 0)))
    product = tl.dot(left, upper, input_precision='ieee')
    return tl.dot(right, lower, product, input_precision='ieee')


@triton.jit
def _entries(m, BLOCK: tl.constexpr):
    """Offsets and mask of a matrix (m, m) in a block."""
    index = tl.arange(0, BLOCK)
    inside = index < m
    return (index[:, None] * m + index[None, :], inside[:, None] & inside[None, :])


@triton.jit
def _own(matrices, m, BLOCK: tl.constexpr):
    """Offsets, mask and values of the matrix of this program."""
    offsets, mask = _entries(m, BLOCK)
    offsets += tl.program_id(0).to(tl.int64) * m * m
    return offsets, mask, tl.load(matrices + offsets, mask, 0.)


@triton.jit
def _regularized(kernel, inverse, m, steps, REGULARIZER: tl.constexpr,
                 BLOCK: tl.constexpr):
    offsets, mask, matrix = _own(kernel, m, BLOCK)
    row_sum = tl.max(tl.sum(matrix, 1), 0)
    index = tl.arange(0, BLOCK)
    diagonal = (index[:, None] == index[None, :]) & mask
    matrix = tl.where(diagonal, matrix + REGULARIZER, matrix)
    x = 1.8 / (row_sum * row_sum) * matrix
    for _ in range(steps):
        x = 2 * x - _product(x, _product(matrix, x, BLOCK), BLOCK)
    tl.store(inverse + offsets, x, mask)


@triton.jit
def _regularized_backward(inverse, grad, out, m, BLOCK: tl.constexpr):
    offsets, mask, matrix = _own(inverse, m, BLOCK)
    transposed = tl.trans(matrix)
    moved = _product(transposed, tl.load(grad + offsets, mask, 0.), BLOCK)
    moved = _product(moved, transposed, BLOCK)
    tl.store(out + offsets, -moved, mask)


@triton.jit
def _start_factor(kernel, heads, m, HALVINGS: tl.constexpr, LIMIT: tl.constexpr,
                  BLOCK: tl.constexpr):
    """Start factor of the image that this program's matrix belongs to."""
    first = tl.program_id(0).to(tl.int64) // heads * heads
    offsets, mask = _entries(m, BLOCK)
    largest = 0.
    bound = 0.
    for head in range(heads):
        matrix = tl.load(kernel + (first + head) * m * m + offsets, mask, 0.)
        degree = tl.sum(matrix, 1)
        column_sum = tl.sum(matrix * degree[None, :], 1)
        excess = column_sum - 2 * tl.sum(matrix * matrix, 1)
        largest = tl.maximum(largest, tl.max(degree, 0))
        bound = tl.maximum(bound, tl.max(tl.maximum(
            excess / (LIMIT - 1), column_sum / (LIMIT + 1)), 0))
    half_square = largest * largest / 2
    halvings = tl.floor(tl.log2(half_square / bound))
    halvings = tl.minimum(tl.maximum(halvings, -HALVINGS), 0.)
    return tl.exp2(halvings) / half_square


@triton.jit
def _scale(degree):
    """Inverse root; zero in the padding."""
    return tl.where(degree > 0, tl.rsqrt(tl.where(degree > 0, degree, 1.)), 0.)


@triton.jit
def _normalized(kernel, inverse, heads, m, steps, HALVINGS: tl.constexpr,
                LIMIT: tl.constexpr, BLOCK: tl.constexpr):
    alpha = _start_factor(kernel, heads, m, HALVINGS, LIMIT, BLOCK)
    offsets, mask, matrix = _own(kernel, m, BLOCK)
    x = alpha * matrix
    for _ in range(steps):
        x = 2 * x - _product(x, _product(matrix, x, BLOCK), BLOCK)
    scale = _scale(tl.sum(matrix, 1))
    tl.store(inverse + offsets, scale[:, None] * x * scale[None, :], mask)


@triton.jit
def _normalized_backward(kernel, grad, out, by_alpha, heads, m, steps, zero,
                         HALVINGS: tl.constexpr, LIMIT: tl.constexpr,
                         BLOCK: tl.constexpr):
    """Gradient without that of the largest degree, which all heads share.

    The scales' part: with H = D^-1/2 G D^-1/2, symmetrised, that of degree i is
    ``-sum_j H_ij X_ij / D_i``. An added ``zero`` hides from the compiler that products
    share a factor; it would keep that in registers, of which there are not enough.
    """
    alpha = _start_factor(kernel, heads, m, HALVINGS, LIMIT, BLOCK)
    offsets, mask, matrix = _own(kernel, m, BLOCK)
    degree = tl.sum(matrix, 1)
    scale = _scale(degree)
    direction = scale[:, None] * tl.load(grad + offsets, mask, 0.) * scale[None, :]
    direction = (direction + tl.trans(direction)) / 2
    x = alpha * matrix
    tangent = alpha * direction
    for _ in range(steps):
        factor = _product(matrix, x, BLOCK)
        moved = _product(tangent, factor, BLOCK)
        tangent = 2 * tangent - moved - tl.trans(moved)
        moved = _product(direction, x + zero, BLOCK)
        tangent -= _product(x, moved, BLOCK)
        x = 2 * x - _product(x + zero, factor + zero, BLOCK)
    shares = tl.sum(direction * x, 1)
    shared = tl.sum(shares + tl.sum(tangent * matrix, 1), 0)
    tl.store(by_alpha + tl.program_id(0), shared)
    by_degree = -shares / tl.where(degree > 0, degree, 1.)
    tl.store(out + offsets, tangent + by_degree[:, None], mask)


@triton.jit
def _largest_degree_backward(kernel, by_alpha, out, heads, m, BLOCK: tl.constexpr):
    """Add the gradient of the largest degree, which equal ones share as in amax."""
    first = tl.program_id(0).to(tl.int64) // heads * heads
    offsets, mask = _entries(m, BLOCK)
    largest = 0.
    count = 0.
    total = 0.
    for head in range(heads):
        matrix = tl.load(kernel + (first + head) * m * m + offsets, mask, 0.)
        degree = tl.sum(matrix, 1)
        top = tl.max(degree, 0)
        number = tl.sum(tl.where(degree == top, 1., 0.), 0)
        count = tl.where(top > largest, number,
                         tl.where(top == largest, count + number, count))
        largest = tl.maximum(largest, top)
        total += tl.load(by_alpha + first + head)
    offsets, mask, matrix = _own(kernel, m, BLOCK)
    degree = tl.sum(matrix, 1)
    share = tl.where(degree == largest, -total / (largest * count), 0.)
    grad = tl.load(out + offsets, mask, 0.)
    tl.store(out + offsets, grad + share[:, None], mask)


def _launch(kernel: Any, matrices: Tensor, *args: Any, **constants: Any) -> None:
    m = matrices.shape[-1]
    grid = matrices.numel() // (m * m),
    if grid[0]:
        with torch.cuda.device_of(matrices):
            kernel[grid](matrices, *args, **constants, num_warps=WARPS,
                         BLOCK=max(32, triton.next_power_of_2(m)))


@torch.library.custom_op('mm_efficient::regularized_inverse', mutates_args=())
def regularized_inverse(kernel: Tensor, steps: int, regularizer: float) -> Tensor:
    """``regularized_inverse`` of SOFT for float32 matrices, (B, heads, m, m)."""
    kernel = kernel.contiguous()
    inverse = torch.empty_like(kernel)
    _launch(_regularized, kernel, inverse, kernel.shape[-1], steps,
            REGULARIZER=regularizer)
    return inverse


@torch.library.custom_op('mm_efficient::regularized_inverse_backward', mutates_args=())
def regularized_inverse_backward(inverse: Tensor, grad: Tensor) -> Tensor:
    """Gradient of an exact inverse, ``-M^T G M^T``."""
    inverse, grad = inverse.contiguous(), grad.contiguous()
    out = torch.empty_like(inverse)
    _launch(_regularized_backward, inverse, grad, out, inverse.shape[-1])
    return out


@torch.library.custom_op('mm_efficient::normalized_inverse', mutates_args=())
def normalized_inverse(kernel: Tensor, steps: int, max_halvings: int,
                       column_sum_limit: float) -> Tensor:
    """``normalized_inverse`` of SOFT for float32 matrices, (B, heads, m, m)."""
    kernel = kernel.contiguous()
    inverse = torch.empty_like(kernel)
    heads, m = kernel.shape[1:3]
    _launch(_normalized, kernel, inverse, heads, m, steps, HALVINGS=max_halvings,
            LIMIT=column_sum_limit)
    return inverse


@torch.library.custom_op('mm_efficient::normalized_inverse_backward', mutates_args=())
def normalized_inverse_backward(kernel: Tensor, grad: Tensor, steps: int,
                                max_halvings: int, column_sum_limit: float) -> Tensor:
    """Its gradient, by the tangent recursion; in two launches."""
    kernel, grad = kernel.contiguous(), grad.contiguous()
    out = torch.empty_like(kernel)
    heads, m = kernel.shape[1:3]
    by_alpha = kernel.new_empty(kernel.shape[:2])
    _launch(_normalized_backward, kernel, grad, out, by_alpha, heads, m, steps, 0.,
            HALVINGS=max_halvings, LIMIT=column_sum_limit)
    _launch(_largest_degree_backward, kernel, by_alpha, out, heads, m)
    return out


@regularized_inverse.register_fake
@regularized_inverse_backward.register_fake
@normalized_inverse.register_fake
@normalized_inverse_backward.register_fake
def _fake(matrices: Tensor, *args: Any) -> Tensor:
    return torch.empty_like(matrices, memory_format=torch.contiguous_format)


def _keep_inverse(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(output)


def _from_inverse(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inverse, = ctx.saved_tensors
    return regularized_inverse_backward(inverse, grad), None, None


def _keep_kernel(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    kernel, *ctx.settings = inputs
    ctx.save_for_backward(kernel)


def _from_kernel(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    kernel, = ctx.saved_tensors
    return normalized_inverse_backward(kernel, grad, *ctx.settings), None, None, None


regularized_inverse.register_autograd(_from_inverse, setup_context=_keep_inverse)
normalized_inverse.register_autograd(_from_kernel, setup_context=_keep_kernel)
