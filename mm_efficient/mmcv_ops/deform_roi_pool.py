"""Deformable RoI pooling: RoIAlign whose bins are moved."""
from functools import partial

import torch
from torch import Tensor

from .common import (
    at_least_float32,
    bilinear_corners,
    gradients,
    sample_steps,
    weighted_sums,
)


def _pool(input: Tensor, offset: Tensor | None = None, *, rois: Tensor,
          bins: tuple[int, int], spatial_scale: float, sampling_ratio: int,
          gamma: float) -> Tensor:
    """See :func:`deform_roi_pool_forward`; differentiable."""
    channels, height, width = input.shape[1:]
    rows, columns = bins
    start, end = (rois[:, 1:] * spatial_scale - 0.5).split(2, 1)  # x and y, (N, 2)
    size = end - start
    pitch = torch.stack([size[:, 0] / columns, size[:, 1] / rows], 1)
    row, column = (torch.arange(number, device=rois.device) for number in bins)
    begin = start[..., None, None] + pitch[..., None, None] * torch.stack(
        torch.meshgrid(column, row, indexing='xy'))  # (N, 2, rows, columns)
    if offset is not None:
        begin = begin + gamma * size[..., None, None] * offset

    step_x, count_x = sample_steps(pitch[:, 0], sampling_ratio)
    step_y, count_y = sample_steps(pitch[:, 1], sampling_ratio)
    x = begin[:, 0, ..., None, None] + step_x[:, None, None, None, :]
    y = begin[:, 1, ..., None, None] + step_y[:, None, None, :, None]
    y, x = torch.broadcast_tensors(y, x)
    pixel, share = bilinear_corners(y, x, height, width)
    count = count_y[:, :, None] * count_x[:, None]  # (N, samples in y, in x)
    count = count / count.sum((1, 2), keepdim=True).clamp(min=1)
    # (N, rows, columns, samples in y, in x, 2, 2)
    share = share * count[:, None, None, :, :, None, None]
    image = rois[:, 0].long().view(-1, 1, 1, 1, 1, 1, 1)
    pixel = pixel + image * (height * width)
    table = input.flatten(2).transpose(1, 2).reshape(-1, channels)
    sums = weighted_sums(table, pixel.flatten(3).flatten(0, 2),
                         share.flatten(3).flatten(0, 2))
    return sums.view(-1, rows, columns, channels).permute(0, 3, 1, 2)


def deform_roi_pool_forward(input: Tensor, rois: Tensor, offset: Tensor,
                            output: Tensor, pooled_height: int, pooled_width: int,
                            spatial_scale: float, sampling_ratio: int,
                            gamma: float) -> None:
    """Average of samples in moved bins, as ``mmcv._ext.deform_roi_pool_forward``.

    Args:
        input (Tensor): Feature map, (B, C, H, W).
        rois (Tensor): Image index, x1, y1, x2, y2, (N, 5).
        offset (Tensor): How far each bin moves in x and y, in sizes of its RoI,
            (N, 2, pooled_height, pooled_width); or empty.
        output (Tensor): Filled in place, (N, C, pooled_height, pooled_width).
        pooled_height (int): Vertical bins per RoI.
        pooled_width (int): Horizontal bins per RoI.
        spatial_scale (float): Scale of the feature map relative to the image.
        sampling_ratio (int): Samples per bin and axis; 0 adapts to the RoI.
        gamma (float): Factor of the offset.
    """
    if len(rois):
        moves = [at_least_float32(offset)] if offset.numel() else []
        output.copy_(_pool(
            at_least_float32(input), *moves, rois=at_least_float32(rois),
            bins=(pooled_height, pooled_width), spatial_scale=spatial_scale,
            sampling_ratio=sampling_ratio, gamma=gamma))


def deform_roi_pool_backward(grad_output: Tensor, input: Tensor, rois: Tensor,
                             offset: Tensor, grad_input: Tensor, grad_offset: Tensor,
                             pooled_height: int, pooled_width: int,
                             spatial_scale: float, sampling_ratio: int,
                             gamma: float) -> None:
    """Gradients of :func:`deform_roi_pool_forward`.

    Where a sample lies outside the map the value does not depend on its position, and
    the gradient of the offset is zero; mmcv extrapolates there.

    Args:
        grad_output (Tensor): (N, C, pooled_height, pooled_width).
        grad_input (Tensor): Filled in place, like ``input``.
        grad_offset (Tensor): Filled in place, like ``offset``.

    The other arguments are those of the forward pass.
    """
    if len(rois):
        pool = partial(
            _pool, rois=at_least_float32(rois), bins=(pooled_height, pooled_width),
            spatial_scale=spatial_scale, sampling_ratio=sampling_ratio, gamma=gamma)
        inputs = [input, offset] if offset.numel() else [input]
        grads = gradients(pool, inputs, grad_output)
        for target, grad in zip((grad_input, grad_offset), grads):
            target.copy_(grad)
