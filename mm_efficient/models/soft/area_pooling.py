"""Area pooling of a feature map to a grid, traceable with dynamic sizes."""
import torch
from torch import Tensor


def area_pool(x: Tensor, height: int, width: int) -> Tensor:
    """Average ``x`` over the cells of a ``height`` x ``width`` grid.

    Unlike adaptive average pooling, an entry on the border of two cells counts for
    both in proportion to its overlap. Written as two matmuls, it exports with dynamic
    input sizes. If input and output size agree, it is the exact identity.

    Args:
        x (Tensor): (..., H, W, C), floating point.
        height (int): Output rows, at most H.
        width (int): Output columns, at most W.

    Returns:
        Tensor: (..., height, width, C).
    """
    rows = _cell_weights(x.shape[-3], height, x)  # (height, H)
    columns = _cell_weights(x.shape[-2], width, x)  # (width, W)
    x = columns @ x  # (..., H, width, C)
    return (rows @ x.flatten(-2)).unflatten(-1, (width, -1))


def _cell_weights(size: int, cells: int, like: Tensor) -> Tensor:
    """Weight of each entry in each cell's average, (cells, size)."""
    width = size / cells  # of a cell, in entries
    centre = torch.arange(cells, dtype=like.dtype, device=like.device)[:, None]
    centre = centre * size / cells + (width - 1) / 2
    entry = torch.arange(size, dtype=like.dtype, device=like.device)
    overlap = ((width + 1) / 2 - (entry - centre).abs()).clamp(0, 1)
    return overlap * cells / size
