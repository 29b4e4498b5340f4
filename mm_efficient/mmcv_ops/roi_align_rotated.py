"""RoIAlign of rotated boxes."""
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


def _align(input: Tensor, *, rois: Tensor, bins: tuple[int, int], spatial_scale: float,
           sampling_ratio: int, aligned: bool, clockwise: bool) -> Tensor:
    """See :func:`roi_align_rotated_forward`; differentiable."""
    channels, height, width = input.shape[1:]
    rows, columns = bins
    centre = rois[:, 1:3] * spatial_scale - (0.5 if aligned else 0.)
    size = rois[:, 3:5] * spatial_scale
    if not aligned:
        size = size.clamp(min=1)
    angle = (rois[:, 5] if clockwise else -rois[:, 5]).view(-1, 1, 1, 1, 1)

    # Positions along the sides of the box from its centre, (N, bins, samples)
    positions, counts = [], []
    for axis, number in enumerate((columns, rows)):
        pitch = size[:, axis] / number
        step, count = sample_steps(pitch, sampling_ratio)
        bin_ = torch.arange(number, device=rois.device)
        begin = bin_ * pitch[:, None] - size[:, axis, None] / 2
        positions.append(begin[..., None] + step[:, None])
        counts.append(count)
    across = positions[0][:, None, :, None, :]
    down = positions[1][:, :, None, :, None]
    x = across * angle.cos() - down * angle.sin() + centre[:, 0].view(-1, 1, 1, 1, 1)
    y = across * angle.sin() + down * angle.cos() + centre[:, 1].view(-1, 1, 1, 1, 1)

    pixel, share = bilinear_corners(y, x, height, width)
    count = counts[1][:, :, None] * counts[0][:, None]
    count = count / count.sum((1, 2), keepdim=True).clamp(min=1)
    # (N, rows, columns, samples in y, in x, 2, 2)
    share = share * count[:, None, None, :, :, None, None]
    pixel = pixel + rois[:, 0].long().view(-1, 1, 1, 1, 1, 1, 1) * (height * width)
    table = input.flatten(2).transpose(1, 2).reshape(-1, channels)
    sums = weighted_sums(table, pixel.flatten(3).flatten(0, 2),
                         share.flatten(3).flatten(0, 2))
    return sums.view(-1, rows, columns, channels).permute(0, 3, 1, 2)


def roi_align_rotated_forward(input: Tensor, rois: Tensor, output: Tensor,
                              pooled_height: int, pooled_width: int,
                              spatial_scale: float, sampling_ratio: int, aligned: bool,
                              clockwise: bool) -> None:
    """Average of samples in rotated bins, as ``mmcv._ext.roi_align_rotated_forward``.

    Args:
        input (Tensor): Feature map, (B, C, H, W).
        rois (Tensor): Image index, x and y of the centre, width, height, angle in
            radians, (N, 6).
        output (Tensor): Filled in place, (N, C, pooled_height, pooled_width).
        pooled_height (int): Bins along the height of a RoI.
        pooled_width (int): Bins along its width.
        spatial_scale (float): Scale of the feature map relative to the image.
        sampling_ratio (int): Samples per bin and axis; 0 adapts to the RoI.
        aligned (bool): Whether pixel centres are at half coordinates.
        clockwise (bool): Whether the angle turns clockwise, as the image is seen.
    """
    if len(rois):
        output.copy_(_align(
            at_least_float32(input), rois=at_least_float32(rois),
            bins=(pooled_height, pooled_width), spatial_scale=spatial_scale,
            sampling_ratio=sampling_ratio, aligned=aligned, clockwise=clockwise))


def roi_align_rotated_backward(grad_output: Tensor, rois: Tensor, grad_input: Tensor,
                               pooled_height: int, pooled_width: int,
                               spatial_scale: float, sampling_ratio: int,
                               aligned: bool, clockwise: bool) -> None:
    """Gradient of :func:`roi_align_rotated_forward` with respect to ``input``.

    Args:
        grad_output (Tensor): (N, C, pooled_height, pooled_width).
        grad_input (Tensor): Filled in place, like ``input``.

    The other arguments are those of the forward pass.
    """
    if len(rois):
        align = partial(
            _align, rois=at_least_float32(rois), bins=(pooled_height, pooled_width),
            spatial_scale=spatial_scale, sampling_ratio=sampling_ratio,
            aligned=aligned, clockwise=clockwise)
        grad_input.copy_(gradients(align, [grad_input], grad_output)[0])
