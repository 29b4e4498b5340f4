"""Replacements for layers that export with fixed input shapes only."""
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.utils import _pair


def adaptive_average(x: Tensor, height: int, width: int) -> Tensor:
    """``F.adaptive_avg_pool2d`` as two matmuls.

    As in PyTorch, and unlike in SOFT's ``area_pool``, a pixel that two cells share
    counts fully in both.

    Args:
        x (Tensor): (..., H, W), floating point.
        height (int): Output height.
        width (int): Output width.

    Returns:
        Tensor: (..., height, width).
    """
    rows = _cell_weights(x.shape[-2], height, x)  # (height, H)
    columns = _cell_weights(x.shape[-1], width, x)  # (width, W)
    return rows @ (x @ columns.t())


def _cell_weights(size: int, num_cells: int, like: Tensor) -> Tensor:
    """Weight of each pixel in the average of each cell, (num_cells, size)."""
    cell = torch.arange(num_cells, device=like.device)[:, None]
    pixel = torch.arange(size, device=like.device)
    start = cell * size // num_cells
    end = ((cell + 1) * size + num_cells - 1) // num_cells
    inside = ((pixel >= start) & (pixel < end)).to(like.dtype)
    return inside / (end - start).to(like.dtype)


class AdaptiveAverage(nn.Module):
    """``nn.AdaptiveAvgPool2d`` that exports with dynamic shapes.

    Args:
        output_size (tuple[int, int]): Output height and width.
    """

    def __init__(self, output_size: tuple[int, int]):
        super().__init__()
        self.output_size = output_size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, *output_size)."""
        return adaptive_average(x, *self.output_size)


class StridedFPN(nn.Module):
    """``FPN`` that takes every other pixel where the original uses max pooling.

    Both compute the same, as the pooling kernel is one pixel, but `torch.export`
    restricts pooling to even sizes.

    Args:
        neck (nn.Module): ``FPN`` without extra convolutions; changed in place.
    """

    def __init__(self, neck: Any):
        super().__init__()
        self.num_extra = neck.num_outs - len(neck.fpn_convs)
        neck.num_outs = len(neck.fpn_convs)
        self.neck = neck

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Feature maps of the backbone -> feature maps of the pyramid."""
        maps = list(self.neck(inputs))
        for _ in range(self.num_extra):
            maps.append(maps[-1][..., ::2, ::2])
        return tuple(maps)


def make_exportable(model: nn.Module) -> None:
    """Replace layers of a segmentor that export with fixed input shapes only.

    Args:
        model (nn.Module): Segmentor of MMSegmentation, changed in place.
    """
    from mmseg.models.utils import Upsample
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                output_size = _pair(child.output_size)
                if output_size != (1, 1):
                    setattr(module, name, AdaptiveAverage(output_size))
            elif isinstance(child, Upsample) and not child.size:
                setattr(module, name, nn.Upsample(
                    scale_factor=child.scale_factor, mode=child.mode,
                    align_corners=child.align_corners))
