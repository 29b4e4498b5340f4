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

The maps are computed from what an attention module is called with, by a function per
class of module. A new family registers its own::

    @maps_of.register
    def _(attn: NewAttention, x: Tensor, token: Token) -> list[AttentionMap]: ...
"""
from collections.abc import Sequence
from dataclasses import dataclass
from functools import singledispatch

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from mmpretrain.models.utils import MultiheadAttention
from torch import Tensor, nn

from ..engine.checks import SetupError
from ..models import PyramidBackbone
from ..models.ecoformer_layers import HashAttention, SoftmaxAttention
from ..models.lowformer import ConvAttention
from ..models.reduceformer import ReductionAttention
from ..models.soft import HEAD_DIMS, SOFTAttention
from ..models.swiftformer import AdditiveAttention
from ..ops.gaussian_attention import gaussian_kernel
from ..ops.kernel_hashing import hash_codes
from ..ops.reduction_attention import EPS
from .figures import grid_figure, show_map


@dataclass(frozen=True)
class Token:
    """The token that looks.

    Args:
        row (int): Row in the grid of tokens.
        column (int): Column in the grid.
        grid (tuple[int, int]): Rows h and columns w of the grid.
        stride (int): Pixels per token and side.
    """
    row: int
    column: int
    grid: tuple[int, int]
    stride: int

    @property
    def index(self) -> int:
        """Place in the sequence of tokens, row by row."""
        return self.row * self.grid[1] + self.column

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width in pixels of what the grid covers."""
        return self.grid[0] * self.stride, self.grid[1] * self.stride


@dataclass
class AttentionMap:
    """One kind of map of an attention module.

    Args:
        title (str): What the values are.
        values (Tensor): One map per head, or per channel, (M, h, w).
        extent (tuple[int, int]): Height and width in pixels that the maps cover, from
            the top left corner of the image.
        signed (bool): Whether zero separates two kinds of values. Defaults to False.
        parts (str): What there are M of. Defaults to 'head'.
        order (Sequence[int], optional): The M, those to be shown first. Defaults to
            None, as they come.
        summary (Tensor, optional): All maps in one, (h, w). Defaults to None, their
            mean.
        summary_title (str): What the summary is. Defaults to 'mean of heads'.
        by_token (bool): Whether another token has another map. Defaults to True.
    """
    title: str
    values: Tensor
    extent: tuple[int, int]
    signed: bool = False
    parts: str = 'head'
    order: Sequence[int] | None = None
    summary: Tensor | None = None
    summary_title: str = 'mean of heads'
    by_token: bool = True

    def __post_init__(self):
        if len(self.values) == 1:
            self.summary_title = f'the only {self.parts}'
        if self.summary is None:
            self.summary = self.values.mean(0)
        if self.order is None:
            self.order = range(len(self.values))


@singledispatch
def maps_of(attn: nn.Module, x: Tensor, token: Token) -> list[AttentionMap]:
    """Maps of an attention module.

    Args:
        attn (nn.Module): The module.
        x (Tensor): What it is called with, for one image.
        token (Token): The token that looks, in the grid of ``x``; families in which
            single tokens do not look take no notice.

    Returns:
        list[AttentionMap]: At least one.

    Raises:
        TypeError: If it is not the attention of a known family.
    """
    raise TypeError(f'{type(attn).__name__} is not a known attention; known are '
                    f'{", ".join(kind.__name__ for kind in attention_types())}')


def attention_types() -> tuple[type, ...]:
    """Classes of attention modules that maps can be made of."""
    return tuple(kind for kind in maps_of.registry if kind is not object)


@maps_of.register
def _(attn: SOFTAttention, x: Tensor, token: Token) -> list[AttentionMap]:
    query = attn.q(x) * HEAD_DIMS**-0.25
    landmarks, inverse = attn._landmarks_and_inverse(query)
    kernel = gaussian_kernel(attn._split_heads(query), landmarks)[0]  # (heads, N, m)
    own = kernel[:, token.index, None]  # (heads, 1, m)
    row = own @ inverse[0] @ kernel.transpose(1, 2)  # (heads, 1, N)
    ratio = attn.landmark_conv.stride[0]
    grid = [size // ratio for size in token.grid]
    extent = tuple(size * ratio * token.stride for size in grid)
    if attn.pretrain_grid:
        grid = [min(size, attn.pretrain_grid // ratio) for size in grid]
    return [
        AttentionMap('attention of the token', row[:, 0].unflatten(-1, token.grid),
                     token.extent, signed=True),
        AttentionMap('Gaussian kernel to the landmarks',
                     own[:, 0].unflatten(-1, grid), extent),
    ]


@maps_of.register
def _(attn: HashAttention, x: Tensor, token: Token) -> list[AttentionMap]:
    query = attn._split_heads(attn.qk(x))
    codes = hash_codes(query, attn.anchors, attn.kernel_mean, attn.projection)[:, 0]
    row = codes[:, token.index, None] @ codes.transpose(1, 2)  # (H, 1, N)
    similarity = row[:, 0].unflatten(-1, token.grid) / codes.shape[-1]
    return [AttentionMap('similarity of hash codes', similarity, token.extent,
                         signed=True)]


@maps_of.register
def _(attn: MultiheadAttention, x: Tensor, token: Token) -> list[AttentionMap]:
    """Behind a class token, which comes first."""
    rows = _softmax_rows(attn, x, [1 + token.index, 0])[..., 1:]
    of_token, of_class = rows.unflatten(-1, token.grid).unbind(1)
    return [AttentionMap('softmax of the token', of_token, token.extent),
            AttentionMap('softmax of the class token', of_class, token.extent,
                         by_token=False)]


@maps_of.register
def _(attn: SoftmaxAttention, x: Tensor, token: Token) -> list[AttentionMap]:
    row, = _softmax_rows(attn, x.flatten(1, 2), [token.index]).unbind(1)
    return [AttentionMap('softmax of the token', row.unflatten(-1, token.grid),
                         token.extent)]


def _softmax_rows(attn: MultiheadAttention, x: Tensor, indices: list[int]) -> Tensor:
    """Rows of the attention matrices, (1, N, C) -> (heads, len(indices), N)."""
    qkv = attn.qkv(x)[0].unflatten(-1, (3, attn.num_heads, -1))  # (N, 3, heads, d)
    query, key, _ = qkv.permute(1, 2, 0, 3)  # (heads, N, d)
    scores = query[:, indices] @ key.transpose(1, 2) * attn.head_dims**-0.5
    return scores.softmax(-1)


@maps_of.register
def _(attn: AdditiveAttention, x: Tensor, token: Token) -> list[AttentionMap]:
    query = F.normalize(attn.qk(x)[0].chunk(2)[0], dim=0)  # (C, h, w)
    scores = torch.einsum('chw,co->ohw', query, attn.score_weight)
    weights = scores / scores.norm().clamp_min(1e-12)
    return [AttentionMap('weight in the global query', weights, token.extent,
                         signed=True, by_token=False)]


@maps_of.register
def _(attn: ConvAttention, x: Tensor, token: Token) -> list[AttentionMap]:
    qkv = attn.qkv(attn.reduce(x))[0]  # (3 E, h', w')
    grid, stride = qkv.shape[1:], attn.stride
    query, key, _ = qkv.flatten(1).unflatten(0, (attn.num_heads, 3, -1)).unbind(1)
    index = token.row // stride * grid[1] + token.column // stride
    scores = torch.einsum('hd,hdn->hn', query[:, :, index], key)
    rows = (scores * query.shape[1]**-0.5).softmax(-1)  # (heads, N')
    extent = tuple(size * stride * token.stride for size in grid)
    return [AttentionMap('softmax of the token', rows.unflatten(-1, grid), extent)]


@maps_of.register
def _(attn: ReductionAttention, x: Tensor, token: Token) -> list[AttentionMap]:
    qkv = attn.qkv(x)
    scales = [t[0].chunk(3) for t in (qkv, attn.local(qkv))]
    query, key, value = (torch.cat(pair) for pair in zip(*scales))  # (2 C, h, w)
    gate = query.relu() / (query.relu().sum(0) + EPS)
    # One number per channel, that its gate hands out: a sum over all positions
    pooled = (key.relu().mean((1, 2)) * value.mean((1, 2))).abs()
    return [AttentionMap(
        'share of a channel at a position', gate, token.extent, parts='channel',
        order=(gate.std((1, 2)) * pooled).argsort(descending=True).tolist(),
        summary=(gate * pooled[:, None, None]).sum(0) / pooled.sum().clamp_min(EPS),
        summary_title='shares weighted by what they gate', by_token=False)]


def attention_layers(backbone: PyramidBackbone) -> dict[str, nn.Module]:
    """Attention modules of a backbone, by name, in the order of the layers.

    Args:
        backbone (PyramidBackbone): Any of the families.

    Returns:
        dict[str, nn.Module]: ``stages.<i>.blocks.<j>...`` to module.

    Raises:
        SetupError: If there are none.
    """
    kinds = attention_types()
    layers = {name: module for name, module in backbone.named_modules()
              if isinstance(module, kinds)}
    if not layers:
        raise SetupError(
            f'this {type(backbone).__name__} has no attention to look at; '
            f'known are {", ".join(kind.__name__ for kind in kinds)}.')
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
            maps[name] = maps_of(module, inputs[0], token)
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
