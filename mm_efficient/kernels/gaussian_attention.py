"""SOFT's attention K (M (K^T v)); K, of tokens and landmarks, is never stored.

Three launches forward, three backward and a sum: sums over the tokens by parts,
products of (landmarks x landmarks), then what each token gets. K is computed anew in
each.
Formulas: :mod:`mm_efficient.models.soft.gaussian_attention`. Inputs may be in half
precision and have any strides except within a head; arithmetic is in full float32.
"""
# Triton's functions have no types:
# mypy: allow-untyped-defs, allow-incomplete-defs
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiling import block_of_tokens, load_rows, product, rows, split, within_heads

TOKENS = 32  # per step of a program; with 64 registers run out
WARPS = 8


@triton.jit
def _kernel(query, landmarks):
    """K, (tokens, landmarks); rows and columns of the padding are not zero."""
    norm_q = tl.sum(query * query, 1) / 2
    norm_l = tl.sum(landmarks * landmarks, 1) / 2
    exponent = product(query, tl.trans(landmarks))
    exponent = exponent - norm_q[:, None] - norm_l[None, :]
    return tl.exp(tl.where(exponent > 0, 0., exponent))  # NaN stays


@triton.jit
def _summarise(query, landmarks, value, parts, tokens, part_tokens, heads, m,
               q_batch, q_head, q_token, v_batch, v_head, v_token,
               D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """K^T v over a part of the tokens."""
    group = tl.program_id(0).to(tl.int64)
    query += group // heads * q_batch + group % heads * q_head
    value += group // heads * v_batch + group % heads * v_head
    few, few_mask = rows(0, m, D, M, D)
    marks = tl.load(landmarks + group * m * D + few, few_mask, 0.)
    total = tl.zeros((M, D), tl.float32)
    first = tl.program_id(1) * part_tokens
    for begin in range(first, tl.minimum(first + part_tokens, tokens), N):
        kernel = _kernel(load_rows(query, begin, tokens, q_token, N, D), marks)
        v = load_rows(value, begin, tokens, v_token, N, D)
        total += product(tl.trans(kernel), v)
    part = group * tl.num_programs(1) + tl.program_id(1)
    tl.store(parts + part * m * D + few, total, few_mask)


@triton.jit
def _added(parts, group, number, m, D: tl.constexpr, M: tl.constexpr):
    offsets, mask = rows(0, m, D, M, D)
    total = tl.zeros((M, D), tl.float32)
    for part in range(number):
        total += tl.load(parts + (group * number + part) * m * D + offsets, mask, 0.)
    return total


@triton.jit
def _mix(parts, inverse, summary, mixed, number, m, D: tl.constexpr, M: tl.constexpr):
    """K^T v from its parts, and M (K^T v)."""
    group = tl.program_id(0).to(tl.int64)
    total = _added(parts, group, number, m, D, M)
    offsets, mask = rows(0, m, D, M, D)
    tl.store(summary + group * m * D + offsets, total, mask)
    square, inside = rows(0, m, m, M, M)
    inside = inside & (tl.arange(0, M) < m)[None, :]
    matrix = tl.load(inverse + group * m * m + square, inside, 0.)
    tl.store(mixed + group * m * D + offsets, product(matrix, total), mask)


@triton.jit
def _mix_backward(parts, inverse, summary, grad_inverse, grad_summary, number, m,
                  D: tl.constexpr, M: tl.constexpr):
    """Gradients of M and of K^T v."""
    group = tl.program_id(0).to(tl.int64)
    grad_mixed = _added(parts, group, number, m, D, M)
    offsets, mask = rows(0, m, D, M, D)
    offsets += group * m * D
    square, inside = rows(0, m, m, M, M)
    inside = inside & (tl.arange(0, M) < m)[None, :]
    square += group * m * m
    matrix = tl.load(inverse + square, inside, 0.)
    tl.store(grad_summary + offsets, product(tl.trans(matrix), grad_mixed), mask)
    total = tl.load(summary + offsets, mask, 0.)
    tl.store(grad_inverse + square, product(grad_mixed, tl.trans(total)), inside)


@triton.jit
def _distribute(query, landmarks, mixed, out, groups, tokens, heads, m, q_batch, q_head,
                q_token, D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """K times what ``mixed`` has per landmark; ``out`` is (B, tokens, heads, D)."""
    group, begin = block_of_tokens(groups, N)
    query += group // heads * q_batch + group % heads * q_head
    few, few_mask = rows(0, m, D, M, D)
    few += group * m * D
    offsets, mask = rows(begin, tokens, q_token, N, D)
    kernel = _kernel(tl.load(query + offsets, mask, 0.).to(tl.float32),
                     tl.load(landmarks + few, few_mask, 0.))
    offsets, mask = rows(begin, tokens, heads * D, N, D)
    out += (group // heads * tokens * heads + group % heads) * D
    tl.store(out + offsets, product(kernel, tl.load(mixed + few, few_mask, 0.)), mask)


@triton.jit
def _distribute_backward(query, landmarks, value, grad, mixed, grad_summary,
                         grad_query, grad_value, parts, tokens, part_tokens, heads, m,
                         q_batch, q_head, q_token, v_batch, v_head, v_token,
                         g_batch, g_head, g_token,
                         D: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Gradients of a part of the tokens, and what these add to that of landmarks."""
    group = tl.program_id(0).to(tl.int64)
    query += group // heads * q_batch + group % heads * q_head
    value += group // heads * v_batch + group % heads * v_head
    grad += group // heads * g_batch + group % heads * g_head
    own = (group // heads * tokens * heads + group % heads) * D
    few, few_mask = rows(0, m, D, M, D)
    few += group * m * D
    marks = tl.load(landmarks + few, few_mask, 0.)
    by_mixed = tl.load(mixed + few, few_mask, 0.)
    by_summary = tl.load(grad_summary + few, few_mask, 0.)
    moments = tl.zeros((M, D), tl.float32)
    weights = tl.zeros((M, ), tl.float32)
    first = tl.program_id(1) * part_tokens
    for begin in range(first, tl.minimum(first + part_tokens, tokens), N):
        q = load_rows(query, begin, tokens, q_token, N, D)
        v = load_rows(value, begin, tokens, v_token, N, D)
        g = load_rows(grad, begin, tokens, g_token, N, D)
        kernel = _kernel(q, marks)
        # dL/d(-|q - l|^2 / 2); zero in the padding, where g, v and the others are
        weight = kernel * (product(g, tl.trans(by_mixed))
                           + product(v, tl.trans(by_summary)))
        offsets, mask = rows(begin, tokens, heads * D, N, D)
        offsets += own
        moved = product(weight, marks) - tl.sum(weight, 1)[:, None] * q
        tl.store(grad_query + offsets, moved.to(grad_query.dtype.element_ty), mask)
        moved = product(kernel, by_summary)
        tl.store(grad_value + offsets, moved.to(grad_value.dtype.element_ty), mask)
        moments += product(tl.trans(weight), q)
        weights += tl.sum(weight, 0)
    few, few_mask = rows(0, m, D, M, D)
    part = group * tl.num_programs(1) + tl.program_id(1)
    tl.store(parts + part * m * D + few, moments - weights[:, None] * marks, few_mask)


def _strides(x: Tensor) -> tuple[int, ...]:
    """Of image, head and token."""
    return x.stride()[:3]


def _parts(query: Tensor) -> tuple[int, int]:
    """Number of parts of a sum over the tokens, and tokens of a part."""
    batch, heads, tokens, _ = query.shape
    return split(tokens, TOKENS, batch * heads)


def _new_tokens(x: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, heads, N, d), in memory as (B, N, heads, d)."""
    batch, heads, tokens, dims = x.shape
    return x.new_empty((batch, tokens, heads, dims), dtype=dtype).transpose(1, 2)


def _constants(landmarks: Tensor) -> dict[str, int]:
    return dict(D=landmarks.shape[-1], num_warps=WARPS,
                M=max(16, triton.next_power_of_2(landmarks.shape[-2])))


def _sum_parts(query: Tensor, landmarks: Tensor, value: Tensor) -> Tensor:
    batch, heads, tokens, _ = query.shape
    number, part_tokens = _parts(query)
    m, dims = landmarks.shape[-2:]
    parts = landmarks.new_empty(batch * heads, number, m, dims)
    _summarise[batch * heads, number](
        query, landmarks, value, parts, tokens, part_tokens, heads, m,
        *_strides(query), *_strides(value), N=TOKENS, **_constants(landmarks))
    return parts


@torch.library.custom_op('mm_efficient::gaussian_attention', mutates_args=())
def gaussian_attention(query: Tensor, landmarks: Tensor, value: Tensor,
                       inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """``gaussian_attention`` of SOFT; landmarks and inverse are in float32.

    Returns:
        tuple: The output in float32, (B, heads, N, d), and what its gradient needs:
        K^T v and M K^T v, (B, heads, m, d).
    """
    query, value = within_heads(query), within_heads(value)
    landmarks, inverse = landmarks.contiguous(), inverse.contiguous()
    batch, heads, tokens, _ = query.shape
    m = landmarks.shape[2]
    out = _new_tokens(query, torch.float32)
    summary, mixed = torch.empty_like(landmarks), torch.empty_like(landmarks)
    constants = _constants(landmarks)
    with torch.cuda.device_of(query):
        parts = _sum_parts(query, landmarks, value)
        _mix[batch * heads, ](parts, inverse, summary, mixed, parts.shape[1], m,
                              **constants)
        _distribute[batch * heads * triton.cdiv(tokens, TOKENS), ](
            query, landmarks, mixed, out, batch * heads, tokens, heads, m,
            *_strides(query), N=TOKENS, **constants)
    return out, summary, mixed


@torch.library.custom_op('mm_efficient::gaussian_attention_backward', mutates_args=())
def gaussian_attention_backward(
        grad: Tensor, query: Tensor, landmarks: Tensor, value: Tensor, inverse: Tensor,
        summary: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of query, landmarks, value and inverse."""
    query, value, grad = map(within_heads, (query, value, grad))
    landmarks, inverse = landmarks.contiguous(), inverse.contiguous()
    batch, heads, tokens, _ = query.shape
    m = landmarks.shape[2]
    grad_query = _new_tokens(query, query.dtype)
    grad_value = _new_tokens(value, value.dtype)
    grad_inverse, grad_summary = torch.empty_like(inverse), torch.empty_like(summary)
    constants = _constants(landmarks)
    with torch.cuda.device_of(query):
        parts = _sum_parts(query, landmarks, grad)
        _mix_backward[batch * heads, ](parts, inverse, summary, grad_inverse,
                                       grad_summary, parts.shape[1], m, **constants)
        parts, (number, part_tokens) = torch.empty_like(parts), _parts(query)
        _distribute_backward[batch * heads, number](
            query, landmarks, value, grad, mixed, grad_summary, grad_query, grad_value,
            parts, tokens, part_tokens, heads, m, *_strides(query), *_strides(value),
            *_strides(grad), N=TOKENS, **constants)
    grad_landmarks = parts.sum(1).view(landmarks.shape)
    return grad_query, grad_landmarks, grad_value, grad_inverse


@gaussian_attention.register_fake
def _fake(query: Tensor, landmarks: Tensor, value: Tensor,
          inverse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return (_new_tokens(query, torch.float32), landmarks.new_empty(landmarks.shape),
            landmarks.new_empty(landmarks.shape))


@gaussian_attention_backward.register_fake
def _fake_backward(grad: Tensor, query: Tensor, landmarks: Tensor, value: Tensor,
                   inverse: Tensor, summary: Tensor, mixed: Tensor
                   ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (_new_tokens(query, query.dtype), landmarks.new_empty(landmarks.shape),
            _new_tokens(value, value.dtype), inverse.new_empty(inverse.shape))


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, ...]:
    return gaussian_attention_backward(grad, *ctx.saved_tensors)


gaussian_attention.register_autograd(_backward, setup_context=_keep)
