"""Attention maps, in the form in which each family computes attention.

========================  ====================================================
SOFT, stages 1 to 3       the token's row of the attention matrix, which may be
                          negative; its Gaussian kernel with the landmarks
SOFT, stage 4             softmax rows of the token and of the class token
EcoFormer, stages 1 to 3  similarity of hash codes with the token's
EcoFormer, stage 4        softmax row of the token
SwiftFormer               weights of the tokens in the global query
LowFormer                 softmax row of the token, on the reduced grid
ReduceFormer              share of each position in each channel
========================  ====================================================

The attention modules compute the maps themselves, see
:class:`~mm_efficient.models.attention_maps.Mappable`.
"""
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ..errors import InputError
from ..models.attention_maps import AttentionMap, Mappable, Token
from ..models.base import PyramidBackbone
from .figures import draw_row, grid_figure


def attention_layers(backbone: PyramidBackbone) -> dict[str, Mappable]:
    """Find the attention modules of a backbone.

    Args:
        backbone (PyramidBackbone): Backbone of any family.

    Returns:
        dict[str, Mappable]: Modules by name, ``stages.<i>.blocks.<j>...``, in order.

    Raises:
        InputError: If there are none.
    """
    layers = {name: module for name, module in backbone.named_modules()
              if isinstance(module, Mappable)}
    if not layers:
        raise InputError(f'this {type(backbone).__name__} has no attention to draw; '
                         'expected modules with a method attention_maps.')
    return layers


@torch.no_grad()
def attention_maps(backbone: PyramidBackbone, x: Tensor, pixel: tuple[int, int],
                   layers: Sequence[str]) -> dict[str, list[AttentionMap]]:
    """Run a backbone on an image and compute its attention maps.

    Args:
        backbone (PyramidBackbone): Backbone in eval mode.
        x (Tensor): One normalized image, (1, 3, H, W).
        pixel (tuple[int, int]): Row and column of a pixel of the query token.
        layers (Sequence[str]): Names from :func:`attention_layers`.

    Returns:
        dict[str, list[AttentionMap]]: Maps by layer name, on the CPU.
    """
    maps: dict[str, list[AttentionMap]] = {}

    def recorder(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        stride = _stride(name)
        grid = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
        token = Token(pixel[0] // stride, pixel[1] // stride, grid, stride)

        def record(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            maps[name] = module.attention_maps(inputs[0], token)
        return record

    handles = [backbone.get_submodule(name).register_forward_pre_hook(recorder(name))
               for name in layers]
    try:
        backbone(x)
    finally:
        for handle in handles:
            handle.remove()
    for found in maps.values():
        for each in found:
            each.values, each.summary = each.values.cpu(), each.summary.cpu()
    return maps


def draw_attention(image: np.ndarray, maps: dict[str, list[AttentionMap]],
                   pixel: tuple[int, int], num_heads: int = 4) -> Figure:
    """Draw attention maps: one row each, with the image in the first column.

    Args:
        image (ndarray): RGB, (H, W, 3).
        maps (dict[str, list[AttentionMap]]): Maps from :func:`attention_maps`.
        pixel (tuple[int, int]): Row and column of a pixel of the query token.
        num_heads (int): Number of heads (or channels) to draw besides their summary.
            Defaults to 4.

    Returns:
        Figure: Figure to save with :func:`~.figures.save_figure`.
    """
    rows = [(name, each, _panels(each, num_heads))
            for name, found in maps.items() for each in found]
    figure, panels = grid_figure(len(rows), 1 + max(len(views) for *_, views in rows),
                                 image.shape[1] / image.shape[0])
    for row, (name, each, views) in zip(panels, rows):
        draw_row(row, image, f'{layer_title(name)}\n{each.title}', views, each.extent,
                 each.signed)
        if each.by_token:
            stride = _stride(name)
            corner = pixel[1] // stride * stride, pixel[0] // stride * stride
            row[0].add_patch(Rectangle(corner, stride, stride, fill=False,
                                       edgecolor='lime', linewidth=1.5))
    return figure


def layer_title(layer: str) -> str:
    """Stage and block of an attention layer, counted from 1."""
    _, stage, _, block, *_ = layer.split('.')
    return f'stage {int(stage) + 1}, block {int(block) + 1}'


def _stride(layer: str) -> int:
    return 4 * 2**int(layer.split('.')[1])


def _panels(each: AttentionMap, num_heads: int) -> dict[str, Tensor]:
    """Maps to draw by title: the summary, then single heads if there are several."""
    assert each.order is not None and each.summary is not None  # after __post_init__
    chosen = each.order[:num_heads] if len(each.values) > 1 else []
    return {each.summary_title: each.summary,
            **{f'{each.parts} {i}': each.values[i] for i in chosen}}
