"""RoIAlign with average or maximum of the samples."""
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn.functional import max_pool2d

from .common import at_least_float32, bilinear_corners, warn_if_not_deterministic

MAX = 0  # mmcv's number for pool_mode='max'; 1 is 'avg'
ROIS_AT_ONCE = 64  # limits the memory for the samples of maximum pooling


def roi_align_forward(input: Tensor, rois: Tensor, output: Tensor, argmax_y: Tensor,
                      argmax_x: Tensor, aligned_height: int, aligned_width: int,
                      spatial_scale: float, sampling_ratio: int, pool_mode: int,
                      aligned: bool) -> None:
    """RoIAlign, as ``mmcv._ext.roi_align_forward``.

    Args:
        input (Tensor): Feature map, (B, C, H, W).
        rois (Tensor): Image index, x1, y1, x2, y2, (N, 5).
        output (Tensor): Filled in place, (N, C, aligned_height, aligned_width).
        argmax_y (Tensor): With maximum pooling filled in place with the row of the
            largest sample, in pixels of the map, like ``output``.
        argmax_x (Tensor): Its column.
        aligned_height (int): Vertical bins per RoI.
        aligned_width (int): Horizontal bins per RoI.
        spatial_scale (float): Scale of the feature map relative to the image.
        sampling_ratio (int): Samples per bin and axis; 0 adapts to the RoI.
        pool_mode (int): 0, maximum, or 1, average.
        aligned (bool): Whether pixel centres are at half coordinates.
    """
    features, rois = at_least_float32(input), at_least_float32(rois)
    bins = aligned_height, aligned_width
    if pool_mode != MAX:
        output.copy_(_average(
            features, rois, spatial_scale, bins, sampling_ratio, aligned))
        return
    # mmcv's results without a sample: a bin of no size with adaptive sampling
    output.fill_(-10000)
    argmax_y.fill_(-1)
    argmax_x.fill_(-1)
    start, size = _boxes_on_map(rois, spatial_scale, aligned)
    for chosen, grid in _equal_grids(size, bins, sampling_ratio):
        samples = _average(
            features, rois[chosen], spatial_scale,
            (bins[0] * grid[0], bins[1] * grid[1]), 1, aligned)
        largest, index = max_pool2d(samples, grid, return_indices=True)
        output[chosen] = largest.to(output.dtype)
        width = samples.size(3)
        for axis, (target, step) in enumerate(
                [(argmax_y, index // width), (argmax_x, index % width)]):
            pitch = size[chosen, axis] / (bins[axis] * grid[axis])
            position = (step + 0.5) * pitch.view(-1, 1, 1, 1)
            position += start[chosen, axis].view(-1, 1, 1, 1)
            target[chosen] = position.to(target.dtype)


def _average(features: Tensor, rois: Tensor, spatial_scale: float,
             bins: tuple[int, int], sampling_ratio: int, aligned: bool) -> Tensor:
    """torchvision's RoIAlign.

    Not ``torchvision.ops.roi_align``: with deterministic algorithms it switches to a
    Python implementation on CUDA, which runs out of memory in training.
    """
    import torchvision  # noqa: F401  registers torch.ops.torchvision
    return torch.ops.torchvision.roi_align(
        features, rois.to(features.dtype), spatial_scale, *bins, sampling_ratio,
        aligned)


def _boxes_on_map(rois: Tensor, spatial_scale: float,
                  aligned: bool) -> tuple[Tensor, Tensor]:
    """Top left corner and size of RoIs in pixels, y before x, both (N, 2)."""
    boxes = rois[:, 1:] * spatial_scale - (0.5 if aligned else 0.)
    start, end = boxes[:, :2].flip(1), boxes[:, 2:].flip(1)
    size = end - start
    return start, size if aligned else size.clamp(min=1)


def _equal_grids(size: Tensor, bins: tuple[int, int], sampling_ratio: int
                 ) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Indices of RoIs with as many samples per bin, and these numbers, rows first.

    RoIs without a sample are left out. Adaptive sampling has to wait for the device.
    """
    if sampling_ratio > 0:
        everything = torch.arange(len(size), device=size.device)
        for chosen in everything.split(ROIS_AT_ONCE):
            yield chosen, (sampling_ratio, sampling_ratio)
        return
    grids = (size / size.new_tensor(bins)).ceil().long()
    for rows, columns in grids[(grids > 0).all(1)].unique(dim=0).tolist():
        alike = (grids[:, 0] == rows) & (grids[:, 1] == columns)
        for chosen in alike.nonzero()[:, 0].split(ROIS_AT_ONCE):
            yield chosen, (rows, columns)


def roi_align_backward(grad_output: Tensor, rois: Tensor, argmax_y: Tensor,
                       argmax_x: Tensor, grad_input: Tensor, aligned_height: int,
                       aligned_width: int, spatial_scale: float, sampling_ratio: int,
                       pool_mode: int, aligned: bool) -> None:
    """Gradient of :func:`roi_align_forward` with respect to ``input``.

    Args:
        grad_output (Tensor): (N, C, aligned_height, aligned_width).
        grad_input (Tensor): Filled in place, (B, C, H, W).

    The other arguments are those of the forward pass.
    """
    import torchvision  # noqa: F401  registers torch.ops.torchvision
    gradient = at_least_float32(grad_output)
    with warn_if_not_deterministic():
        if pool_mode == MAX:
            grad_input.copy_(_scatter(gradient, rois, argmax_y, argmax_x, grad_input))
            return
        grad_input.copy_(
            torch.ops.torchvision._roi_align_backward(
                gradient, rois.to(gradient.dtype), spatial_scale, aligned_height,
                aligned_width, *grad_input.shape, sampling_ratio, aligned))


def _scatter(gradient: Tensor, rois: Tensor, argmax_y: Tensor, argmax_x: Tensor,
             like: Tensor) -> Tensor:
    """Add gradients, (N, C, h, w), to the pixels around the largest samples.

    Returns:
        Tensor: Of the shape of ``like``, (B, C, H, W), in the type of ``gradient``.
    """
    _, channels, height, width = like.shape
    y, x = argmax_y.to(gradient), argmax_x.to(gradient)
    pixel, share = bilinear_corners(y, x, height, width)
    channel = torch.arange(channels, device=rois.device) + rois[:, :1].long() * channels
    pixel = pixel + channel[..., None, None, None, None] * (height * width)
    share = share * (gradient * (y != -1))[..., None, None]
    return gradient.new_zeros(like.numel()).index_add_(
        0, pixel.flatten(), share.flatten()).view(like.shape)
