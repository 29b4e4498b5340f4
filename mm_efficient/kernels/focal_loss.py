"""Sigmoid focal loss on logits, and its gradient, in one launch each.

Formulas: :mod:`mm_efficient.mmcv_ops.focal_loss`. Logits may be in half precision;
arithmetic is in float32.
"""
# Triton's functions have no types:
# mypy: allow-untyped-defs, allow-incomplete-defs
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
WARPS = 4


@triton.jit
def _focal(logits, target, weight, out, entries, classes, gamma, alpha,
           WEIGHTED: tl.constexpr, SLOPE: tl.constexpr, BLOCK: tl.constexpr):
    """Loss, or with SLOPE its derivative; s is the logit of being right."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = index < entries
    row = index // classes
    label = tl.load(target + row, mask, 0)
    positive = label == index - row * classes
    x = tl.load(logits + index, mask, 0.).to(tl.float32)
    s = tl.where(positive, x, -x)
    small = tl.exp(-tl.abs(s))
    # log(1 + small) without the rounding of 1 + small
    above = 1 + small
    log_above = tl.where(above == 1, small,
                         tl.log(above) * (small / tl.where(above == 1, 1., above - 1)))
    log_right = tl.minimum(s, 0.) - log_above
    wrong = tl.where(s >= 0, small, 1.) / above  # 1 - p_t
    factor = tl.exp2(gamma * tl.log2(tl.maximum(wrong, 1e-38)))
    if SLOPE:
        right = tl.where(s >= 0, 1., small) / above
        value = (wrong - gamma * log_right * right) * factor
        value *= tl.where(positive, -alpha, 1 - alpha)
    else:
        value = log_right * factor * tl.where(positive, -alpha, alpha - 1)
    if WEIGHTED:  # class `classes` is background and has no weight, nor has a label -1
        known = mask & (label >= 0) & (label < classes)
        value *= tl.load(weight + label, known, 1.).to(tl.float32)
    tl.store(out + index, value.to(out.dtype.element_ty), mask)


def _launch(slope: bool, input: Tensor, target: Tensor, weight: Tensor, out: Tensor,
            gamma: float, alpha: float) -> None:
    with torch.cuda.device_of(input):
        _focal[triton.cdiv(input.numel(), BLOCK), ](
            input.contiguous(), target.contiguous(), weight.contiguous(), out,
            input.numel(), input.size(1), gamma, alpha, WEIGHTED=weight.numel() > 0,
            SLOPE=slope, BLOCK=BLOCK, num_warps=WARPS)


@torch.library.custom_op('mm_efficient::sigmoid_focal_loss', mutates_args=('output', ))
def sigmoid_focal_loss(input: Tensor, target: Tensor, weight: Tensor, output: Tensor,
                       gamma: float, alpha: float) -> None:
    """``sigmoid_focal_loss_forward`` into a contiguous ``output``."""
    _launch(False, input, target, weight, output, gamma, alpha)


@torch.library.custom_op('mm_efficient::sigmoid_focal_loss_backward',
                         mutates_args=('grad_input', ))
def sigmoid_focal_loss_backward(
        input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float,
        alpha: float) -> None:
    """``sigmoid_focal_loss_backward`` into a contiguous ``grad_input``."""
    _launch(True, input, target, weight, grad_input, gamma, alpha)


@sigmoid_focal_loss.register_fake
@sigmoid_focal_loss_backward.register_fake
def _fake(*args: Any) -> None:
    return None
