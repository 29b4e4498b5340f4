"""ReduceFormer's attention on both scales: two launches forward, two backward.

Sums over the positions by parts, then what each position gets. Queries, keys and values
are read where the convolutions left them, in either memory format.
Formulas: :mod:`mm_efficient.models.reduceformer.reduction_attention`, and for the
gradient, with g that of the output and S the sum of Q over the channels,

    dQ[c, p] = (g[c, p] R[c] - sum_c' g[c', p] Q[c', p] R[c'] / S[p]) / S[p]
    dR[c] = sum_p g[c, p] Q[c, p] / S[p],    R[c] = sum_p K[c, p] sum_p V[c, p]

Inputs may be in half precision; arithmetic is in float32.
"""
# Triton's functions have no types:
# mypy: allow-untyped-defs, allow-incomplete-defs
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .tiling import split

ENTRIES = 2048  # positions times channels of a program's step
MAX_POSITIONS = 64  # of a step
MAX_PARTS = 16  # of a sum, which every program of the next launch adds
WARPS = 8


@triton.jit
def _block(begin, end, channels, by_channel, by_position, T: tl.constexpr,
           C: tl.constexpr):
    """Offsets and mask of T positions from ``begin`` on, and all channels."""
    position = begin + tl.arange(0, T)
    channel = tl.arange(0, C)
    return (position[:, None].to(tl.int64) * by_position
            + channel[None, :].to(tl.int64) * by_channel,
            (position < end)[:, None] & (channel < channels)[None, :])


@triton.jit
def _relu(x):
    return tl.where(x < 0, 0., x)  # NaN stays


@triton.jit
def _sum_key_value(x, out, begin, end, channels, x_channel, x_position,
                   T: tl.constexpr, C: tl.constexpr):
    """Sums of relu(K) and of V from ``begin`` to ``end``."""
    key = x + channels.to(tl.int64) * x_channel
    value = key + channels.to(tl.int64) * x_channel
    keys = tl.zeros((T, C), tl.float32)
    values = tl.zeros((T, C), tl.float32)
    for first in range(begin, end, T):
        offsets, mask = _block(first, end, channels, x_channel, x_position, T, C)
        keys += _relu(tl.load(key + offsets, mask, 0.).to(tl.float32))
        values += tl.load(value + offsets, mask, 0.).to(tl.float32)
    channel = tl.arange(0, C)
    tl.store(out + channel, tl.sum(keys, 0), channel < channels)
    tl.store(out + channels + channel, tl.sum(values, 0), channel < channels)


@triton.jit
def _summarise(qkv, local, parts, positions, part_positions, channels, x_batch,
               x_channel, x_position, T: tl.constexpr, C: tl.constexpr):
    """Sums over a part of the positions, of one scale: (B, parts, 2, 2, channels)."""
    image = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * part_positions
    end = tl.minimum(begin + part_positions, positions)
    out = parts + (image * tl.num_programs(1) + tl.program_id(1)) * 4 * channels
    if tl.program_id(2) == 0:
        _sum_key_value(qkv + image * x_batch, out, begin, end, channels, x_channel,
                       x_position, T, C)
    else:
        _sum_key_value(local + image * x_batch, out + 2 * channels, begin, end,
                       channels, x_channel, x_position, T, C)


@triton.jit
def _added(parts, row, number, channels, ROWS: tl.constexpr, C: tl.constexpr,
           PARTS: tl.constexpr):
    """Sum of a row over an image's parts, (parts, ROWS, channels)."""
    part = tl.arange(0, PARTS)
    channel = tl.arange(0, C)
    mask = (part < number)[:, None] & (channel < channels)[None, :]
    offsets = (part * ROWS + row)[:, None] * channels + channel[None, :]
    return tl.sum(tl.load(parts + offsets, mask, 0.), 0)


@triton.jit
def _total(parts, totals, row, number, channels, C: tl.constexpr, PARTS: tl.constexpr):
    """Sum of a row over the parts, which an image's first program keeps."""
    total = _added(parts, row, number, channels, 4, C, PARTS)
    channel = tl.arange(0, C)
    mask = channel < tl.where(tl.program_id(1) == 0, channels, 0)
    tl.store(totals + row * channels + channel, total, mask)
    return total


@triton.jit
def _gate(qkv, local, parts, totals, out, positions, number, channels, factor, x_batch,
          x_channel, x_position, y_batch, y_channel, y_position, T: tl.constexpr,
          C: tl.constexpr, PARTS: tl.constexpr):
    """Output of a block of positions."""
    image = tl.program_id(0).to(tl.int64)
    begin = tl.program_id(1) * T
    parts += image * number * 4 * channels
    totals += image * 4 * channels
    offsets, mask = _block(begin, positions, channels, x_channel, x_position, T, C)
    offsets += image * x_batch
    near = _relu(tl.load(qkv + offsets, mask, 0.).to(tl.float32))
    wide = _relu(tl.load(local + offsets, mask, 0.).to(tl.float32))
    inverse = 1 / (tl.sum(near, 1) + tl.sum(wide, 1) + 1e-15)[:, None]
    offsets, mask = _block(begin, positions, channels, y_channel, y_position, T, C)
    out += image * y_batch
    key = factor * _total(parts, totals, 0, number, channels, C, PARTS)
    value = factor * _total(parts, totals, 1, number, channels, C, PARTS)
    near = near * inverse * (key * value)[None, :]
    tl.store(out + offsets, near.to(out.dtype.element_ty), mask)
    key = factor * _total(parts, totals, 2, number, channels, C, PARTS)
    value = factor * _total(parts, totals, 3, number, channels, C, PARTS)
    wide = wide * inverse * (key * value)[None, :]
    out += channels.to(tl.int64) * y_channel
    tl.store(out + offsets, wide.to(out.dtype.element_ty), mask)


@triton.jit
def _kept(totals, row, channels, C: tl.constexpr):
    """A row of the sums, K and V of a scale and of the other."""
    channel = tl.arange(0, C)
    return tl.load(totals + row * channels + channel, channel < channels, 0.)


@triton.jit
def _gated(totals, scale, channels, factor, C: tl.constexpr):
    """The number per channel that the queries' shares gate."""
    return (factor * _kept(totals, 2 * scale, channels, C)
            * (factor * _kept(totals, 2 * scale + 1, channels, C)))


@triton.jit
def _gate_backward(qkv, local, totals, grad, grad_qkv, grad_local, shares, positions,
                   part_positions, channels, factor, x_batch, x_channel, x_position,
                   y_batch, y_channel, y_position, T: tl.constexpr, C: tl.constexpr):
    """Gradients of a part's queries, and dR by parts: (B, parts, 2, channels)."""
    image = tl.program_id(0).to(tl.int64)
    totals += image * 4 * channels
    near_gated = _gated(totals, 0, channels, factor, C)[None, :]
    wide_gated = _gated(totals, 1, channels, factor, C)[None, :]
    near_share = tl.zeros((C, ), tl.float32)
    wide_share = tl.zeros((C, ), tl.float32)
    first = tl.program_id(1) * part_positions
    for begin in range(first, tl.minimum(first + part_positions, positions), T):
        own, mask = _block(begin, positions, channels, x_channel, x_position, T, C)
        own += image * x_batch
        near = _relu(tl.load(qkv + own, mask, 0.).to(tl.float32))
        wide = _relu(tl.load(local + own, mask, 0.).to(tl.float32))
        inverse = 1 / (tl.sum(near, 1) + tl.sum(wide, 1) + 1e-15)[:, None]
        near *= inverse
        wide *= inverse
        offsets, _ = _block(begin, positions, channels, y_channel, y_position, T, C)
        offsets += image * y_batch
        near_grad = tl.load(grad + offsets, mask, 0.).to(tl.float32)
        near_share += tl.sum(near_grad * near, 0)
        near_grad *= near_gated
        offsets += channels.to(tl.int64) * y_channel
        wide_grad = tl.load(grad + offsets, mask, 0.).to(tl.float32)
        wide_share += tl.sum(wide_grad * wide, 0)
        wide_grad *= wide_gated
        common = tl.sum(near_grad * near, 1) + tl.sum(wide_grad * wide, 1)
        near = tl.where(near > 0, (near_grad - common[:, None]) * inverse, 0.)
        wide = tl.where(wide > 0, (wide_grad - common[:, None]) * inverse, 0.)
        tl.store(grad_qkv + own, near.to(grad_qkv.dtype.element_ty), mask)
        tl.store(grad_local + own, wide.to(grad_local.dtype.element_ty), mask)
    channel = tl.arange(0, C)
    shares += (image * tl.num_programs(1) + tl.program_id(1)) * 2 * channels + channel
    tl.store(shares, near_share, channel < channels)
    tl.store(shares + channels, wide_share, channel < channels)


@triton.jit
def _spread(x, grad, totals, shares, scale, positions, number, channels, factor,
            x_channel, x_position, T: tl.constexpr, C: tl.constexpr,
            PARTS: tl.constexpr):
    """Gradients of one scale's keys and values, at a block of positions."""
    share = _added(shares, scale, number, channels, 2, C, PARTS) * factor * factor
    by_key = share * _kept(totals, 2 * scale + 1, channels, C)
    by_value = share * _kept(totals, 2 * scale, channels, C)
    offsets, mask = _block(tl.program_id(1) * T, positions, channels, x_channel,
                           x_position, T, C)
    offsets += channels.to(tl.int64) * x_channel
    key = tl.load(x + offsets, mask, 0.)
    moved = tl.where(key > 0, by_key[None, :], 0.)
    tl.store(grad + offsets, moved.to(grad.dtype.element_ty), mask)
    offsets += channels.to(tl.int64) * x_channel
    moved = tl.zeros((T, C), tl.float32) + by_value[None, :]
    tl.store(grad + offsets, moved.to(grad.dtype.element_ty), mask)


@triton.jit
def _spread_backward(qkv, local, totals, shares, grad_qkv, grad_local, positions,
                     number, channels, factor, x_batch, x_channel, x_position,
                     T: tl.constexpr, C: tl.constexpr, PARTS: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    own = image * x_batch
    totals += image * 4 * channels
    shares += image * number * 2 * channels
    if tl.program_id(2) == 0:
        _spread(qkv + own, grad_qkv + own, totals, shares, 0, positions, number,
                channels, factor, x_channel, x_position, T, C, PARTS)
    else:
        _spread(local + own, grad_local + own, totals, shares, 1, positions, number,
                channels, factor, x_channel, x_position, T, C, PARTS)


def _dense(x: Tensor) -> Tensor:
    """Copy only if ``x`` has neither memory format."""
    dense = x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last)
    return x if dense else x.contiguous()


def _pair(qkv: Tensor, local: Tensor) -> tuple[Tensor, Tensor]:
    """Both in the memory format of the first."""
    qkv = _dense(qkv)
    if local.stride() != qkv.stride():
        local = torch.empty_like(qkv).copy_(local)
    return qkv, local


def _new_output(qkv: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, 2 C, H, W), in the memory format of (B, 3 C, H, W)."""
    return torch.empty_like(qkv[:, qkv.shape[1] // 3:], dtype=dtype)


def _new_totals(qkv: Tensor) -> Tensor:
    return qkv.new_empty((len(qkv), 2, 2, qkv.shape[1] // 3), dtype=torch.float32)


def _strides(x: Tensor) -> tuple[int, ...]:
    """Of image, channel and position."""
    return x.flatten(2).stride()


def _sizes(qkv: Tensor) -> tuple[int, int, dict[str, int]]:
    """Positions, channels of a scale's queries, and sizes of a program's blocks."""
    channels = qkv.shape[1] // 3
    block = triton.next_power_of_2(channels)
    constants = dict(C=block, num_warps=WARPS, T=min(MAX_POSITIONS,
                                                     max(1, ENTRIES // block)))
    return qkv.shape[2] * qkv.shape[3], channels, constants


@torch.library.custom_op('mm_efficient::reduction_attention', mutates_args=())
def reduction_attention(qkv: Tensor, local: Tensor, pretrain_tokens: int | None,
                        dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """``reduction_attention`` of ReduceFormer on both scales.

    Args:
        qkv (Tensor): Queries, keys and values, (B, 3 C, H, W).
        local (Tensor): Those of the other scale, of the same type.
        pretrain_tokens (int, optional): Number of positions during pre-training.
        dtype (torch.dtype): Type of the output.

    Returns:
        tuple: The output, (B, 2 C, H, W), and what its gradient needs: sums of K and V,
        (B, 2, 2, C).
    """
    qkv, local = _pair(qkv, local)
    positions, channels, constants = _sizes(qkv)
    factor = pretrain_tokens / positions if pretrain_tokens else 1.
    batch, step = len(qkv), constants['T']
    number, part_positions = split(positions, step, 2 * batch, MAX_PARTS)
    out = _new_output(qkv, dtype)
    totals = _new_totals(qkv)
    parts = totals.new_empty(batch, number, 2, 2, channels)
    with torch.cuda.device_of(qkv):
        _summarise[batch, number, 2](
            qkv, local, parts, positions, part_positions, channels, *_strides(qkv),
            **constants)
        _gate[batch, triton.cdiv(positions, step)](
            qkv, local, parts, totals, out, positions, number, channels, factor,
            *_strides(qkv), *_strides(out), PARTS=MAX_PARTS, **constants)
    return out, totals


@torch.library.custom_op('mm_efficient::reduction_attention_backward', mutates_args=())
def reduction_attention_backward(
        grad: Tensor, qkv: Tensor, local: Tensor, totals: Tensor,
        pretrain_tokens: int | None) -> tuple[Tensor, Tensor]:
    """Gradients of qkv and local."""
    qkv, local = _pair(qkv, local)
    positions, channels, constants = _sizes(qkv)
    factor = pretrain_tokens / positions if pretrain_tokens else 1.
    batch, step = len(qkv), constants['T']
    number, part_positions = split(positions, step, 2 * batch, MAX_PARTS)
    grad = _dense(grad)
    grad_qkv, grad_local = torch.empty_like(qkv), torch.empty_like(qkv)
    shares = totals.new_empty(batch, number, 2, channels)
    with torch.cuda.device_of(qkv):
        _gate_backward[batch, number](
            qkv, local, totals, grad, grad_qkv, grad_local, shares, positions,
            part_positions, channels, factor, *_strides(qkv), *_strides(grad),
            **constants)
        _spread_backward[batch, triton.cdiv(positions, step), 2](
            qkv, local, totals, shares, grad_qkv, grad_local, positions, number,
            channels, factor, *_strides(qkv), PARTS=MAX_PARTS, **constants)
    return grad_qkv, grad_local


@reduction_attention.register_fake
def _fake(qkv: Tensor, local: Tensor, pretrain_tokens: int | None,
          dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _new_output(_dense(qkv), dtype), _new_totals(qkv)


@reduction_attention_backward.register_fake
def _fake_backward(grad: Tensor, qkv: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(_dense(qkv)), torch.empty_like(_dense(qkv))


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    qkv, local, ctx.pretrain_tokens, _ = inputs
    ctx.save_for_backward(qkv, local, output[1])
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor | None, ...]:
    grads = reduction_attention_backward(grad, *ctx.saved_tensors, ctx.pretrain_tokens)
    return *grads, None, None


reduction_attention.register_autograd(_backward, setup_context=_keep)
