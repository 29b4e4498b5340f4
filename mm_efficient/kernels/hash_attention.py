"""EcoFormer's attention; neither kernel values nor projections are ever stored.

Three launches and a sum forward, two and a sum backward: the mean unit query, codes and
sums over the tokens by parts, then what each token gets. Two things make it few:

- the kernel's width sigma, a mean over all tokens and anchors, is linear in the mean
  unit query: ``sigma = mean_m(1 + |a_m|^2) - 2 mean_n(z_n) . mean_m(a_m)``;
- so its gradient is a sum over the tokens, of w_n times the gradient of the projection,
  with ``w = dp / d sigma``. The latter is linear in sums that the tokens have in
  common, so that one pass takes all sums.

Formulas: :mod:`mm_efficient.models.ecoformer.kernel_hashing`. Inputs may be in half
precision and have any strides except within a head; arithmetic is in full float32.
"""
# Triton's functions have no types:
# mypy: allow-untyped-defs, allow-incomplete-defs
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiling import (
    MAX_PARTS,
    block_of_tokens,
    load_rows,
    product,
    rows,
    split,
    within_heads,
)

ENTRIES = 1024  # tokens times channels of a program's step; with 2048 registers run out
BITS = 16
WARPS = 8


@triton.jit
def _unit(query):
    """Queries of unit length, and their length, at least 1e-12."""
    norm = tl.maximum(tl.sqrt(tl.sum(query * query, 1)), 1e-12)[:, None]
    return query / norm, norm


@triton.jit
def _sum_units(query, parts, tokens, part_tokens, heads, q_batch, q_token, q_head,
               D: tl.constexpr, N: tl.constexpr):
    """Sum of unit queries over a part of the tokens."""
    group = tl.program_id(0).to(tl.int64)
    query += group // heads * q_batch + group % heads * q_head
    total = tl.zeros((N, D), tl.float32)
    first = tl.program_id(1) * part_tokens
    for begin in range(first, tl.minimum(first + part_tokens, tokens), N):
        unit, _ = _unit(load_rows(query, begin, tokens, q_token, N, D))
        total += unit
    part = group * tl.num_programs(1) + tl.program_id(1)
    tl.store(parts + part * D + tl.arange(0, D), tl.sum(total, 0))


@triton.jit
def _width(parts, anchors, group, number, tokens, m, D: tl.constexpr,
           PARTS: tl.constexpr):
    """Sigma of an image and head, from the parts of the sum of unit queries."""
    offsets, mask = rows(0, number, D, PARTS, D)
    unit = tl.sum(tl.load(parts + group * number * D + offsets, mask, 0.), 0) / tokens
    square = tl.sum(tl.sum(anchors * anchors, 1), 0)
    return 1 + (square - 2 * tl.sum(unit * tl.sum(anchors, 0), 0)) / m


@triton.jit
def _anchors(anchors, head, m, D: tl.constexpr, M: tl.constexpr):
    """Zero in the padding."""
    return load_rows(anchors + head * m * D, 0, m, D, M, D)


@triton.jit
def _mean(mean, head, m, M: tl.constexpr):
    index = tl.arange(0, M)
    return tl.load(mean + head * m + index, index < m, 0.).to(tl.float32)


@triton.jit
def _projection(projection, head, m, M: tl.constexpr, B: tl.constexpr):
    """(bits, anchors), zero in the padding, so that this never counts."""
    offsets, mask = rows(0, B, m, B, M)
    mask = mask & (tl.arange(0, M) < m)[None, :]
    return tl.load(projection + head * B * m + offsets, mask, 0.).to(tl.float32)


@triton.jit
def _exponent(unit, anchors):
    """Half the negative squared distance, if queries have unit length."""
    offset = (1 + tl.sum(anchors * anchors, 1)) / 2
    return product(unit, tl.trans(anchors)) - offset[None, :]


@triton.jit
def _encode(query, value, anchors, mean, projection, units, codes, parts, sigmas,
            tokens, part_tokens, number, heads, m, q_batch, q_token, q_head, v_batch,
            v_token, v_head, D: tl.constexpr, M: tl.constexpr, B: tl.constexpr,
            N: tl.constexpr, PARTS: tl.constexpr):
    """Codes c of a part of the tokens, and what these add to C^T V and the sum of C."""
    group = tl.program_id(0).to(tl.int64)
    query += group // heads * q_batch + group % heads * q_head
    value += group // heads * v_batch + group % heads * v_head
    anchor = _anchors(anchors, group % heads, m, D, M)
    centre = _mean(mean, group % heads, m, M)
    project = tl.trans(_projection(projection, group % heads, m, M, B))
    sigma = _width(units, anchor, group, number, tokens, m, D, PARTS)
    tl.store(sigmas + group, sigma)
    total = tl.zeros((B, D), tl.float32)
    count = tl.zeros((B, ), tl.float32)
    first = tl.program_id(1) * part_tokens
    for begin in range(first, tl.minimum(first + part_tokens, tokens), N):
        unit, _ = _unit(load_rows(query, begin, tokens, q_token, N, D))
        kernel = tl.exp(_exponent(unit, anchor) / sigma)
        projected = product(kernel - centre[None, :], project)
        code = tl.where(projected > 0, 1., tl.where(projected < 0, -1., 0.))
        offsets, mask = rows(begin, tokens, B, N, B)
        tl.store(codes + group * tokens * B + offsets, code.to(tl.int8), mask)
        code = tl.where(mask, code, 0.)
        v = load_rows(value, begin, tokens, v_token, N, D)
        total += product(tl.trans(code), v)
        count += tl.sum(code, 0)
    parts += (group * number + tl.program_id(1)) * B * (D + 1)
    offsets, mask = rows(0, B, D, B, D)
    tl.store(parts + offsets, total, mask)
    tl.store(parts + B * D + tl.arange(0, B), count)


@triton.jit
def _sums(sums, D: tl.constexpr, B: tl.constexpr):
    """A matrix (bits, D) and a vector (bits)."""
    offsets, mask = rows(0, B, D, B, D)
    return (tl.load(sums + offsets, mask, 0.),
            tl.load(sums + B * D + tl.arange(0, B)))


@triton.jit
def _weighted(code, value, total, count, tokens, B: tl.constexpr):
    """Numerator and denominator of the attention, (tokens, D) and (tokens, 1)."""
    denominator = tl.sum(code * count[None, :], 1) + (B + 1) * tokens
    return product(code, total) + (B + 1) * value, denominator[:, None]


@triton.jit
def _distribute(codes, value, sums, out, groups, tokens, heads, v_batch, v_token,
                v_head, D: tl.constexpr, B: tl.constexpr, N: tl.constexpr):
    """Output of a block of tokens; ``out`` is (images, tokens, heads, D)."""
    group, begin = block_of_tokens(groups, N)
    value += group // heads * v_batch + group % heads * v_head
    out += (group // heads * tokens * heads + group % heads) * D
    total, count = _sums(sums + group * B * (D + 1), D, B)
    offsets, mask = rows(begin, tokens, B, N, B)
    code = tl.load(codes + group * tokens * B + offsets, mask, 0).to(tl.float32)
    v = load_rows(value, begin, tokens, v_token, N, D)
    numerator, denominator = _weighted(code, v, total, count, tokens, B)
    offsets, mask = rows(begin, tokens, heads * D, N, D)
    tl.store(out + offsets, (numerator / denominator).to(out.dtype.element_ty), mask)


@triton.jit
def _weighted_backward(code, value, grad, total, count, tokens, B: tl.constexpr):
    """Gradients of numerator and denominator."""
    numerator, denominator = _weighted(code, value, total, count, tokens, B)
    by_numerator = grad / denominator
    return by_numerator, -tl.sum(by_numerator * (numerator / denominator), 1)[:, None]


@triton.jit
def _collect_backward(query, value, grad, codes, anchors, mean, projection, sigmas,
                      sums, parts, tokens, part_tokens, heads, m, q_batch, q_token,
                      q_head, v_batch, v_token, v_head, g_batch, g_token, g_head,
                      D: tl.constexpr, M: tl.constexpr, B: tl.constexpr,
                      N: tl.constexpr):
    """What a part of the tokens adds to the gradients of C^T V, sum of C and sigma.

    That of sigma is ``sum_n w_n . dp_n``, where p is the projection. Of dp, what the
    token's own output gives is known here. The rest is the same for all tokens but for
    v, so that ``sum_n w_n v_n^T`` and ``sum_n w_n`` suffice.
    """
    group = tl.program_id(0).to(tl.int64)
    query += group // heads * q_batch + group % heads * q_head
    value += group // heads * v_batch + group % heads * v_head
    grad += group // heads * g_batch + group % heads * g_head
    anchor = _anchors(anchors, group % heads, m, D, M)
    centre = _mean(mean, group % heads, m, M)
    project = tl.trans(_projection(projection, group % heads, m, M, B))
    sigma = tl.load(sigmas + group)
    total, count = _sums(sums + group * B * (D + 1), D, B)
    by_total = tl.zeros((B, D), tl.float32)
    by_count = tl.zeros((B, ), tl.float32)
    weighted = tl.zeros((B, D), tl.float32)
    weights = tl.zeros((B, ), tl.float32)
    own = tl.zeros((B, ), tl.float32)
    first = tl.program_id(1) * part_tokens
    for begin in range(first, tl.minimum(first + part_tokens, tokens), N):
        v = load_rows(value, begin, tokens, v_token, N, D)
        g = load_rows(grad, begin, tokens, g_token, N, D)
        offsets, inside = rows(begin, tokens, B, N, B)
        code = tl.load(codes + group * tokens * B + offsets, inside, 0).to(tl.float32)
        numerator, denominator = _weighted_backward(code, v, g, total, count, tokens, B)
        by_total += product(tl.trans(code), numerator)
        by_count += tl.sum(code * denominator, 0)
        unit, _ = _unit(load_rows(query, begin, tokens, q_token, N, D))
        exponent = _exponent(unit, anchor) / sigma
        kernel = tl.exp(exponent)
        projected = product(kernel - centre[None, :], project)
        weight = product(kernel * exponent, project) * (-1 / sigma)
        weight = tl.where(inside & (tl.abs(projected) < 1), weight, 0.)
        weighted += product(tl.trans(weight), v)
        weights += tl.sum(weight, 0)
        by_code = product(numerator, tl.trans(total)) + denominator * count[None, :]
        own += tl.sum(weight * by_code, 0)
    parts += (group * tl.num_programs(1) + tl.program_id(1)) * B * (2 * D + 3)
    offsets, mask = rows(0, B, D, B, D)
    bit = tl.arange(0, B)
    tl.store(parts + offsets, by_total, mask)
    tl.store(parts + B * D + bit, by_count)
    tl.store(parts + B * (D + 1) + offsets, weighted, mask)
    tl.store(parts + B * (2 * D + 1) + bit, weights)
    tl.store(parts + B * (2 * D + 2) + bit, own)


@triton.jit
def _width_backward(collected, by_total, by_count, D: tl.constexpr, B: tl.constexpr):
    """Gradient of sigma."""
    weighted, weights = _sums(collected + B * (D + 1), D, B)
    own = tl.load(collected + B * (2 * D + 2) + tl.arange(0, B))
    return tl.sum(own + weights * by_count + tl.sum(weighted * by_total, 1), 0)


@triton.jit
def _distribute_backward(query, value, grad, codes, anchors, mean, projection, sigmas,
                         sums, collected, grad_query, grad_value, groups, tokens, heads,
                         m, q_batch, q_token, q_head, v_batch, v_token, v_head, g_batch,
                         g_token, g_head, D: tl.constexpr, M: tl.constexpr,
                         B: tl.constexpr, N: tl.constexpr):
    """Gradients of a block of tokens."""
    group, begin = block_of_tokens(groups, N)
    query += group // heads * q_batch + group % heads * q_head
    value += group // heads * v_batch + group % heads * v_head
    grad += group // heads * g_batch + group % heads * g_head
    total, count = _sums(sums + group * B * (D + 1), D, B)
    collected += group * B * (2 * D + 3)
    by_total, by_count = _sums(collected, D, B)
    v = load_rows(value, begin, tokens, v_token, N, D)
    g = load_rows(grad, begin, tokens, g_token, N, D)
    offsets, inside = rows(begin, tokens, B, N, B)
    code = tl.load(codes + group * tokens * B + offsets, inside, 0).to(tl.float32)
    numerator, denominator = _weighted_backward(code, v, g, total, count, tokens, B)
    moved = product(code, by_total) + (B + 1) * numerator
    offsets, mask = rows(begin, tokens, heads * D, N, D)
    offsets += (group // heads * tokens * heads + group % heads) * D
    tl.store(grad_value + offsets, moved.to(grad_value.dtype.element_ty), mask)
    by_code = product(numerator, tl.trans(total)) + denominator * count[None, :]
    by_code += product(v, tl.trans(by_total)) + by_count[None, :]

    anchor = _anchors(anchors, group % heads, m, D, M)
    project = _projection(projection, group % heads, m, M, B)
    sigma = tl.load(sigmas + group)
    unit, norm = _unit(load_rows(query, begin, tokens, q_token, N, D))
    kernel = tl.exp(_exponent(unit, anchor) / sigma)
    centre = _mean(mean, group % heads, m, M)
    projected = product(kernel - centre[None, :], tl.trans(project))
    by_code = tl.where(tl.abs(projected) < 1, by_code, 0.)
    by_exponent = product(by_code, project) * kernel / sigma
    by_width = _width_backward(collected, by_total, by_count, D, B)
    by_unit = product(by_exponent, anchor)
    by_unit += (tl.sum(anchor, 0) * (-2 * by_width / (tokens * m)))[None, :]
    along = tl.sum(by_unit * unit, 1)[:, None]
    moved = (by_unit - tl.where(norm > 1e-12, along, 0.) * unit) / norm
    offsets, mask = rows(begin, tokens, heads * D, N, D)
    offsets += (group // heads * tokens * heads + group % heads) * D
    tl.store(grad_query + offsets, moved.to(grad_query.dtype.element_ty), mask)


def _strides(x: Tensor) -> tuple[int, ...]:
    """Of image, token and head."""
    return x.stride()[:3]


def _sizes(query: Tensor, anchors: Tensor) -> tuple[tuple[int, int], dict[str, int]]:
    """Parts of a sum over the tokens, tokens of a part, and constants of kernels."""
    batch, tokens, heads, dims = query.shape
    step = ENTRIES // dims
    return split(tokens, step, batch * heads), dict(
        D=dims, M=max(16, triton.next_power_of_2(anchors.shape[1])), B=BITS, N=step,
        num_warps=WARPS)


def _new_outputs(query: Tensor, value: Tensor) -> tuple[Tensor, ...]:
    batch, tokens, heads, dims = query.shape
    return (value.new_empty(value.shape),
            query.new_empty((batch, heads, tokens, BITS), dtype=torch.int8),
            query.new_empty((batch, heads, BITS * (dims + 1)), dtype=torch.float32),
            query.new_empty((batch, heads), dtype=torch.float32))


@torch.library.custom_op('mm_efficient::hash_attention', mutates_args=())
def hash_attention(query: Tensor, value: Tensor, anchors: Tensor, mean: Tensor,
                   projection: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``hash_attention`` of EcoFormer with the codes of its queries.

    Args:
        query (Tensor): (B, N, H, d).
        value (Tensor): (B, N, H, d).
        anchors (Tensor): (H, m, d).
        mean (Tensor): (H, 1, m).
        projection (Tensor): (H, 16, m).

    Returns:
        tuple: The output in the type of ``value``, (B, N, H, d), and what its gradient
        needs: codes, (B, H, N, 16), their products with values and their sums in one,
        (B, H, 16 (d + 1)), and sigma, (B, H).
    """
    query, value = within_heads(query), within_heads(value)
    functions = anchors.contiguous(), mean.contiguous(), projection.contiguous()
    batch, tokens, heads, dims = query.shape
    out, codes, sums, sigmas = _new_outputs(query, value)
    (number, part_tokens), constants = _sizes(query, anchors)
    step = constants['N']
    units = sigmas.new_empty(batch, heads, number, dims)
    parts = sigmas.new_empty(batch, heads, number, BITS * (dims + 1))
    with torch.cuda.device_of(query):
        _sum_units[batch * heads, number](
            query, units, tokens, part_tokens, heads, *_strides(query), D=dims,
            N=step, num_warps=WARPS)
        _encode[batch * heads, number](
            query, value, *functions, units, codes, parts, sigmas, tokens, part_tokens,
            number, heads, anchors.shape[1], *_strides(query), *_strides(value),
            PARTS=MAX_PARTS, **constants)
        torch.sum(parts, 2, out=sums)
        _distribute[batch * heads * triton.cdiv(tokens, step), ](
            codes, value, sums, out, batch * heads, tokens, heads, *_strides(value),
            D=dims, B=BITS, N=step, num_warps=WARPS)
    return out, codes, sums, sigmas


@torch.library.custom_op('mm_efficient::hash_attention_backward', mutates_args=())
def hash_attention_backward(
        grad: Tensor, query: Tensor, value: Tensor, anchors: Tensor, mean: Tensor,
        projection: Tensor, codes: Tensor, sums: Tensor, sigmas: Tensor
        ) -> tuple[Tensor, Tensor]:
    """Gradients of query and value; the sign's is that of the identity on (-1, 1)."""
    query, value, grad = map(within_heads, (query, value, grad))
    functions = anchors.contiguous(), mean.contiguous(), projection.contiguous()
    batch, tokens, heads, dims = query.shape
    grad_query, grad_value = query.new_empty(query.shape), value.new_empty(value.shape)
    (number, part_tokens), constants = _sizes(query, anchors)
    step = constants['N']
    parts = sums.new_empty(batch, heads, number, BITS * (2 * dims + 3))
    inputs = query, value, grad, codes, *functions, sigmas, sums
    strides = *_strides(query), *_strides(value), *_strides(grad)
    with torch.cuda.device_of(query):
        _collect_backward[batch * heads, number](
            *inputs, parts, tokens, part_tokens, heads, anchors.shape[1], *strides,
            **constants)
        _distribute_backward[batch * heads * triton.cdiv(tokens, step), ](
            *inputs, parts.sum(2), grad_query, grad_value, batch * heads, tokens, heads,
            anchors.shape[1], *strides, **constants)
    return grad_query, grad_value


@hash_attention.register_fake
def _fake(query: Tensor, value: Tensor, *_: Tensor) -> tuple[Tensor, ...]:
    return _new_outputs(query, value)


@hash_attention_backward.register_fake
def _fake_backward(grad: Tensor, query: Tensor, value: Tensor, *_: Tensor
                   ) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, *output[1:])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    grads = hash_attention_backward(grad, *ctx.saved_tensors)
    return *grads, None, None, None


hash_attention.register_autograd(_backward, setup_context=_keep)
