"""Softmax-free attention with a Gaussian kernel and landmarks (SOFT).

``K M K^T v`` with ``K = exp(-|q - l|^2 / 2)`` between all tokens q and a few
landmarks l: https://arxiv.org/abs/2110.11945, section 3. There are two forms of the
same function: :func:`gaussian_attention_reference` follows the formula;
:func:`gaussian_attention` processes the tokens in chunks and never stores the
(tokens x landmarks) matrix K.
"""
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from ...kernels import MAX_LANDMARKS, use_kernel
from ..layers import (
    at_least_float32,
    autocast_disabled,
    backward_without_autocast,
    in_float32,
    is_compiling,
    is_eager,
)

# Entries of K per chunk: about what a CPU's caches hold, and enough to keep other
# devices busy
CHUNK_ENTRIES = {'cpu': 2**22}
CHUNK_ENTRIES_DEFAULT = 2**26


@in_float32
def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    """Compute the Gaussian kernel ``exp(-|x_i - y_j|^2 / 2)`` of all pairs.

    The squared distance is expanded, and clamped so that rounding cannot make it
    negative.

    Args:
        x (Tensor): (..., N, d).
        y (Tensor): (..., m, d).

    Returns:
        Tensor: (..., N, m), entries in [0, 1].
    """
    half_norms = (_half_norm(x) + _half_norm(y).transpose(-1, -2))
    return (x @ y.transpose(-1, -2) - half_norms).clamp(max=0).exp()


@in_float32
def landmark_kernel(landmarks: Tensor) -> Tensor:
    """Compute the Gaussian kernel between landmarks, with an exact unit diagonal.

    With a single landmark the start factor of the inverse is on the edge of
    convergence, and rounding on the diagonal would decide the result. The matrix is
    symmetric to the last bit, because the inverse grows without bound where rounding
    makes it asymmetric: a product of a matrix with its own transpose need not be
    symmetric, and landmarks of norm 300 turn its rounding into errors of a percent.

    Args:
        landmarks (Tensor): (..., m, d).

    Returns:
        Tensor: (..., m, m), symmetric.
    """
    product = (0.5 * landmarks) @ landmarks.transpose(-1, -2)
    # Half squared norms, which cancel exactly
    if is_eager():
        half_norms = product.diagonal(dim1=-2, dim2=-1)
    else:  # Core ML has no diagonal
        identity = torch.eye(product.shape[-1], dtype=product.dtype,
                             device=product.device)
        half_norms = (product * identity).sum(-1)
    difference = product - half_norms[..., None]
    return (difference + difference.transpose(-1, -2)).clamp(max=0).exp()


def gaussian_attention_reference(query: Tensor, landmarks: Tensor, value: Tensor,
                                 inverse: Tensor) -> Tensor:
    """Plain form of :func:`gaussian_attention`, in the published order."""
    kernel = gaussian_kernel(query, landmarks)  # (B, heads, N, m)
    return (kernel @ inverse) @ (kernel.transpose(-1, -2) @ value)


def gaussian_attention(query: Tensor, landmarks: Tensor, value: Tensor,
                       inverse: Tensor) -> Tensor:
    """Compute attention ``K M (K^T v)`` through landmarks, in memory linear in N.

    K is computed chunk by chunk and recomputed in the backward pass. While tracing
    (``torch.compile``, export) there is a single chunk, so the graph does not depend
    on the number of tokens.

    Args:
        query (Tensor): Tokens q, (B, heads, N, d), already scaled.
        landmarks (Tensor): Landmarks l, (B, heads, m, d).
        value (Tensor): Values v, (B, heads, N, d).
        inverse (Tensor): M, (B, heads, m, m).

    Returns:
        Tensor: (B, heads, N, d).
    """
    with autocast_disabled(query):
        if _kernel_serves(query, landmarks, value):
            return torch.ops.mm_efficient.gaussian_attention(
                query, at_least_float32(landmarks), value, at_least_float32(inverse))[0]
        if torch.jit.is_tracing() or is_compiling() and not torch.is_grad_enabled():
            # Without the autograd function: fewer nodes, and TorchScript has none
            query, landmarks, value, inverse = map(
                at_least_float32, (query, landmarks, value, inverse))
            kernel = _kernel(*_homogeneous(query, landmarks))
            return kernel @ (inverse @ (kernel.transpose(-1, -2) @ value))
        out = _GaussianAttention.apply(*map(
            _grouped, (query, landmarks, value, inverse)))
        return out.view(query.shape)


def _kernel_serves(query: Tensor, landmarks: Tensor, value: Tensor) -> bool:
    """Whether the fused kernel is on and takes these sizes."""
    return (use_kernel(query, landmarks, value) and landmarks.shape[2] <= MAX_LANDMARKS
            and query.shape[-1] in (16, 32, 64) and query.shape == value.shape)


def _grouped(x: Tensor) -> Tensor:
    """(B, heads, N, d) -> (B * heads, N, d), float32 if in half; at most one copy."""
    x = x.to(torch.promote_types(x.dtype, torch.float32),
             memory_format=torch.contiguous_format)  # only a copy if the type changes
    return x.flatten(0, 1)


def _half_norm(x: Tensor) -> Tensor:
    return x.square().sum(-1, keepdim=True) / 2


def _chunks(query: Tensor, landmarks: Tensor) -> Iterator[slice]:
    """Yield slices of the tokens that keep K within ``CHUNK_ENTRIES``."""
    if is_compiling():
        yield slice(None)
        return
    groups, tokens, _ = query.shape
    entries = CHUNK_ENTRIES.get(query.device.type, CHUNK_ENTRIES_DEFAULT)
    size = max(1, entries // max(1, groups * landmarks.shape[1]))
    if size >= tokens:
        yield slice(None)
        return
    for start in range(0, tokens, size):
        yield slice(start, start + size)


def _squared_norm(x: Tensor) -> Tensor:
    """(..., n, d) -> (..., n, 1)."""
    if not is_eager():
        return x.square().sum(-1, keepdim=True)
    if x.device.type == 'cpu':  # a norm of heads that are not contiguous is slow there
        return torch.linalg.vecdot(x, x).unsqueeze(-1)
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True).square()  # fewer bytes


def _homogeneous(query: Tensor, landmarks: Tensor) -> tuple[Tensor, Tensor]:
    """Return q' and l' with q' . l' = -|q - l|^2 / 2: one matmul, no broadcasting."""
    norm_q, norm_l = map(_squared_norm, (query, landmarks))
    minus_half = torch.full((), -0.5, dtype=query.dtype, device=query.device)
    # (..., N, d + 2) and (..., d + 2, m)
    query = torch.cat([query, norm_q, minus_half.expand_as(norm_q)], -1)
    landmarks = torch.cat([landmarks, minus_half.expand_as(norm_l), norm_l], -1)
    return query, landmarks.transpose(-1, -2)


def _kernel(query: Tensor, landmarks: Tensor) -> Tensor:
    """Kernel matrix of homogeneous coordinates, (..., n, m)."""
    return (query @ landmarks).clamp_(max=0).exp_()


class _GaussianAttention(Function):
    """Chunked forward and backward on (G, N, d) tensors, G = B * heads."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, landmarks: Tensor, value: Tensor,
                inverse: Tensor) -> Tensor:
        chunks = list(_chunks(query, landmarks))
        q, l = _homogeneous(query, landmarks)  # noqa: E741
        summary = None  # K^T v, (G, m, d)
        for c in chunks:
            kernel = _kernel(q[:, c], l)
            summary = _added(summary, kernel.transpose(1, 2), value[:, c])
        mixed = inverse @ summary  # (G, m, d)
        if len(chunks) == 1:
            out = kernel @ mixed
        else:
            out = torch.empty_like(value, memory_format=torch.contiguous_format)
            for c in chunks:
                torch.bmm(_kernel(q[:, c], l), mixed, out=out[:, c])
        ctx.save_for_backward(query, landmarks, value, inverse, summary, mixed)
        return out

    @staticmethod
    @once_differentiable
    @backward_without_autocast
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        query, landmarks, value, inverse, summary, mixed = ctx.saved_tensors
        chunks = list(_chunks(query, landmarks))
        q, l = _homogeneous(query, landmarks)  # noqa: E741
        grad_mixed = None
        for c in chunks:
            kernel = _kernel(q[:, c], l)
            grad_mixed = _added(grad_mixed, kernel.transpose(1, 2), grad[:, c])
        grad_inverse = grad_mixed @ summary.transpose(1, 2)
        grad_summary = inverse.transpose(1, 2) @ grad_mixed  # (G, m, d)
        # dL/dK = grad mixed^T + value grad_summary^T, as one matmul
        right = torch.cat([mixed, grad_summary], -1).transpose(1, 2)
        grad_query, grad_value = [], []
        moments: Any = None  # sums over the tokens of weight times (q, |q|^2, -1/2)
        for c in chunks:
            if len(chunks) > 1:
                kernel = _kernel(q[:, c], l)
            grad_value.append(kernel @ grad_summary)
            weight = torch.cat([grad[:, c], value[:, c]], -1) @ right
            weight = weight.mul_(kernel)  # dL/d(-|q - l|^2 / 2), (G, n, m)
            # d(-|q - l|^2 / 2) = (l - q) dq + (q - l) dl
            moved = weight @ l.transpose(1, 2)  # times (l, -1/2, ...), (G, n, d + 2)
            grad_query.append(torch.addcmul(
                moved[..., :-2], moved[..., -2:-1], query[:, c], value=2))
            moments = _added(moments, weight.transpose(1, 2), q[:, c])
        grad_landmarks = torch.addcmul(
            moments[..., :-2], moments[..., -1:], landmarks, value=2)
        return _joined(grad_query), grad_landmarks, _joined(grad_value), grad_inverse


def _added(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    return a @ b if total is None else torch.baddbmm(total, a, b)


def _joined(chunks: list[Tensor]) -> Tensor:
    return torch.cat(chunks, 1) if len(chunks) > 1 else chunks[0]
