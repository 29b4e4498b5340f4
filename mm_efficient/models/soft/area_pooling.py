"""Pooling a map to a grid by area, traceable with dynamic sizes."""
import torch
from torch import Tensor


def area_pool(x: Tensor, height: int, width: int) -> Tensor:
    """Average ``x`` over the cells of a ``height`` x ``width`` grid.

    Like adaptive average pooling, except that an entry on the border of two
    cells counts for both by its share, and that it is written as two matrix
    products, which export with dynamic input sizes. Where input and output
    size agree it is the identity, to the last bit.

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
    """Share of every entry in every cell's average, (cells, size)."""
    start = torch.arange(cells, dtype=like.dtype, device=like.device)[:, None]
    start = start * size / cells
    entry = torch.arange(size, dtype=like.dtype, device=like.device)
    overlap = (torch.minimum(start + size / cells, entry + 1)
               - torch.maximum(start, entry)).clamp(min=0)
    return overlap * cells / size
