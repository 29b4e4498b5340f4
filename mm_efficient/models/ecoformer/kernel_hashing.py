"""Kernelised hashing attention (EcoFormer), linear in the number of tokens.

Queries, which serve as keys too, are hashed to codes of -1 and +1 by kernel hash
functions; attention weights are inner products of codes:
https://arxiv.org/abs/2209.09004, section 3. The hash functions are buffers, fitted once
(see `hash_fitting`).
"""
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ...kernels import MAX_ANCHORS, use_kernel
from ..layers import (
    add_scaled,
    at_least_float32,
    autocast_disabled,
    contiguous,
    contiguous_float32,
    in_float32,
)

EPS = 1e-12  # lower bound on the norm of a query; the original has none


def anchor_kernel(query: Tensor, anchors: Tensor) -> Tensor:
    """Compute the Gaussian kernel between unit queries and anchors.

    ``exp(-|z - a|^2 / (2 sigma))`` with z the query scaled to unit length and sigma
    the mean of all squared distances, one number per image and head.

    Args:
        query (Tensor): (B, N, H, d), not necessarily of unit length.
        anchors (Tensor): (H, m, d).

    Returns:
        Tensor: (H, B, N, m), float32 or float64.
    """
    with autocast_disabled(query):
        anchors = at_least_float32(anchors)
        flat = query.permute(2, 0, 1, 3).flatten(1, 2)  # (H, B * N, d), a view
        norm = torch.linalg.vector_norm(flat, dim=-1, keepdim=True, dtype=anchors.dtype)
        # -|z - a|^2 / 2 = z . a - (1 + |a|^2) / 2
        offset = 1 + anchors.square().sum(-1)[:, None]  # (H, 1, m)
        # EPS as a literal: compilers take a global float for an input of the graph
        exponent = torch.baddbmm(offset, flat / norm.clamp_min(1e-12),
                                 anchors.transpose(1, 2), beta=-0.5)
        exponent = exponent.unflatten(1, query.shape[:2])  # (H, B, N, m)
        sigma = -2 * exponent.mean((2, 3), keepdim=True)
        return (exponent / sigma).exp()


def hash_codes(query: Tensor, anchors: Tensor, mean: Tensor,
               projection: Tensor) -> Tensor:
    """Compute codes: the signs of projected, centred kernel values of queries.

    The sign's gradient is that of the identity where the projection is in (-1, 1), and
    zero elsewhere (straight-through estimator).

    Args:
        query (Tensor): (B, N, H, d), not necessarily of unit length.
        anchors (Tensor): (H, m, d).
        mean (Tensor): Mean kernel values, (H, 1, m).
        projection (Tensor): One row per bit, (H, b, m).

    Returns:
        Tensor: (H, B, N, b), -1 or +1 (0 for a projection of exactly 0).
    """
    return _centred_codes(anchor_kernel(query, anchors), mean, projection)


@in_float32
def _centred_codes(kernel: Tensor, mean: Tensor, projection: Tensor) -> Tensor:
    projection = projection.transpose(1, 2)
    projected = torch.baddbmm(mean @ projection, kernel.flatten(1, 2), projection,
                              beta=-1).unflatten(1, kernel.shape[1:3])
    if torch.jit.is_tracing():  # TorchScript has no autograd functions
        return projected.sign()
    return _Sign.apply(projected)


class _Sign(Function):
    """Sign, with the gradient of the identity on (-1, 1)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sign()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        x, = ctx.saved_tensors
        return grad.masked_fill(x.abs() >= 1, 0)


def hash_attention(codes: Tensor, value: Tensor) -> Tensor:
    """Compute attention whose weights are inner products of codes.

    With b bits, ``out_i = (sum_j (c_i . c_j) v_j + (b + 1) v_i) / sum_j (c_i . c_j +
    b + 1)``. The bias b + 1 keeps the denominator positive. That it enters the
    numerator only for the token itself is how the published weights were trained.

    Args:
        codes (Tensor): (H, B, N, b), entries -1 and +1.
        value (Tensor): (B, N, H, d).

    Returns:
        Tensor: (B, N, H, d), float32 or float64.
    """
    with autocast_disabled(value):
        codes = at_least_float32(codes)
        bias = codes.shape[-1] + 1
        value = contiguous_float32(value.permute(2, 0, 1, 3))  # (H, B, N, d)
        transposed = codes.transpose(2, 3)
        numerator = add_scaled(codes @ (transposed @ value), value, bias)
        denominator = codes @ transposed.sum(-1)[..., None] + bias * codes.shape[2]
        return (numerator / denominator).permute(1, 2, 0, 3)


def attend_by_codes(query: Tensor, value: Tensor, anchors: Tensor, mean: Tensor,
                    projection: Tensor) -> Tensor:
    """Attention by the codes of queries, which serve as keys too.

    Args:
        query (Tensor): (B, N, H, d).
        value (Tensor): (B, N, H, d).
        anchors (Tensor): See :func:`hash_codes`, as for the other two.
        mean (Tensor): Mean kernel values.
        projection (Tensor): One row per bit.

    Returns:
        Tensor: (B, N, H, d), contiguous, in the type of ``value``.
    """
    if _kernel_serves(query, value, anchors, mean, projection):
        return torch.ops.mm_efficient.hash_attention(
            query, value, anchors, mean, projection)[0]
    codes = hash_codes(query, anchors, mean, projection)
    return contiguous(hash_attention(codes, value), value.dtype)


def _kernel_serves(query: Tensor, value: Tensor, *functions: Tensor) -> bool:
    """Whether the fused kernel is on, takes these sizes and has these gradients."""
    m, dims = functions[0].shape[1:]
    return (use_kernel(query, value, *functions) and query.shape == value.shape
            and m <= MAX_ANCHORS and dims in (16, 32, 64)
            and functions[2].shape[1] == 16
            and not any(x.requires_grad for x in functions))
