"""Attention maps, in the form in which each family computes attention.

The attention modules compute the maps themselves, see
:class:`~mm_efficient.models.attention_maps.Mappable`; the help of
``tools/visualization/attention_maps.py`` lists them.
"""
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from ..errors import InputError
from ..models.attention_maps import AttentionMap, Mappable, Token
from ..models.base import PyramidBackbone
from .figures import MapRow, draw_maps


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
        dict[str, list[AttentionMap]]: Maps by layer name, on the device of ``x``.
    """
    maps: dict[str, list[AttentionMap]] = {}

    def record(name: str, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        stride = _stride(name)
        grid = -(-x.shape[2] // stride), -(-x.shape[3] // stride)
        token = Token(pixel[0] // stride, pixel[1] // stride, grid, stride)
        maps[name] = module.attention_maps(inputs[0], token)

    handles = [backbone.get_submodule(name).register_forward_pre_hook(
        partial(record, name)) for name in layers]
    try:
        backbone(x)
    finally:
        for handle in handles:
            handle.remove()
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
    rows = []
    for name, found in maps.items():
        stride = _stride(name)
        frame = pixel[1] // stride * stride, pixel[0] // stride * stride, stride
        rows += [MapRow(f'{layer_title(name)}\n{each.title}', _panels(each, num_heads),
                        each.extent, each.signed, frame if each.by_token else None)
                 for each in found]
    return draw_maps(image, rows)


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
