"""Where attention looks, by each family's own notion of it.

========================  ====================================================
SOFT, stages 1 to 3       row of the attention matrix of a token, may be
                          negative; Gaussian kernel between it and the landmarks
SOFT, stage 4             softmax row of a token, and of the class token
EcoFormer, stages 1 to 3  similarity of hash codes to those of a token
EcoFormer, stage 4        softmax row of a token
SwiftFormer               weights of the tokens in the global query
LowFormer                 softmax row of a token, on the reduced grid
ReduceFormer              share of every channel at a position
========================  ====================================================

The maps come from the attention modules themselves, by their method
``attention_maps``, see :class:`~mm_efficient.models.attention_maps.Mappable`.
"""
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from ..errors import InputError
from ..models.attention_maps import AttentionMap, Mappable, Token
from ..models.base import PyramidBackbone
from .figures import grid_figure, show_map


def attention_layers(backbone: PyramidBackbone) -> dict[str, nn.Module]:
    """Attention modules of a backbone, by name, in the order of the layers.

    Args:
        backbone (PyramidBackbone): Any of the families.

    Returns:
        dict[str, nn.Module]: ``stages.<i>.blocks.<j>...`` to module.

    Raises:
        InputError: If there are none.
    """
    layers = {name: module for name, module in backbone.named_modules()
              if isinstance(module, Mappable)}
    if not layers:
        raise InputError(f'this {type(backbone).__name__} has no attention to look at; '
                         'expected modules with a method attention_maps.')
    return layers


@torch.no_grad()
def attention_maps(backbone: PyramidBackbone, x: Tensor, pixel: tuple[int, int],
                   layers: list[str]) -> dict[str, list[AttentionMap]]:
    """Run an image through a backbone and look at attention on the way.

    Args:
        backbone (PyramidBackbone): In eval mode.
        x (Tensor): One normalised image, (1, 3, H, W).
        pixel (tuple[int, int]): Row and column of the pixel whose token looks.
        layers (list[str]): Names out of :func:`attention_layers`.

    Returns:
        dict[str, list[AttentionMap]]: Maps by name of the layer, on the CPU.
    """
    maps = {}

    def hook(name):
        stride = 4 * 2**int(name.split('.')[1])  # stages.<i>.
        grid = tuple(-(-size // stride) for size in x.shape[2:])
        token = Token(pixel[0] // stride, pixel[1] // stride, grid, stride)

        def record(module, inputs):
            maps[name] = module.attention_maps(inputs[0], token)
        return record

    modules = dict(backbone.named_modules())
    handles = [modules[name].register_forward_pre_hook(hook(name)) for name in layers]
    try:
        backbone(x)
    finally:
        for handle in handles:
            handle.remove()
    for found in maps.values():
        for each in found:
            each.values, each.summary = each.values.cpu(), each.summary.cpu()
    return maps


def draw_attention(photo: np.ndarray, maps: dict[str, list[AttentionMap]],
                   pixel: tuple[int, int], num_parts: int = 4) -> Figure:
    """Figure of attention maps: a line per map, the photograph in front.

    Args:
        photo (ndarray): RGB, (H, W, 3).
        maps (dict[str, list[AttentionMap]]): From :func:`attention_maps`.
        pixel (tuple[int, int]): Row and column of the pixel whose token looks.
        num_parts (int): Heads or channels to show of each. Defaults to 4.

    Returns:
        Figure: Not saved yet.
    """
    lines = [(name, each) for name, found in maps.items() for each in found]
    shown = max(len(_shown(each, num_parts)) for _, each in lines)
    figure, panels = grid_figure(len(lines), 2 + shown,
                                 photo.shape[1] / photo.shape[0])
    for panel, (name, each) in zip(panels, lines):
        stride = 4 * 2**int(name.split('.')[1])
        panel[0].imshow(photo)
        if each.by_token:
            corner = pixel[1] // stride * stride, pixel[0] // stride * stride
            panel[0].add_patch(Rectangle(corner, stride, stride, fill=False,
                                         edgecolor='lime', linewidth=1.5))
        panel[0].set_title(f'{short_name(name)}\n{each.title}', fontsize=10)
        views = [(each.summary_title, each.summary)] + [
            (f'{each.parts} {i}', each.values[i]) for i in _shown(each, num_parts)]
        for axes, (title, values) in zip(panel[1:], views):
            values = values.float().numpy()
            show_map(axes, photo, values, each.extent, each.signed)
            axes.set_title(f'{title}\n{values.min():.2g} to {values.max():.2g}',
                           fontsize=10)
    return figure


def _shown(each: AttentionMap, number: int) -> list[int]:
    """Heads or channels to show beside the summary, which a single one is itself."""
    return list(each.order[:number]) if len(each.values) > 1 else []


def short_name(layer: str) -> str:
    """Name of an attention layer for people: stages and blocks count from 1."""
    _, stage, _, block, *_ = layer.split('.')
    return f'stage {int(stage) + 1}, block {int(block) + 1}'
