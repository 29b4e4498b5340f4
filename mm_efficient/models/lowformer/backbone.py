"""LowFormer: fused convolutions, and attention at a coarser grid.

Papers: https://arxiv.org/abs/2409.03460 (WACV 2025) and
https://arxiv.org/abs/2603.26551 (the edge variants e1, e2, e3).
Original: https://github.com/altair199797/LowFormer, Apache-2.0, built on
EfficientViT. This file is written from the architecture's description; timm
(Apache-2.0) has the model too and agrees with it.

Differences from the original, none of which affects published weights:

- one architecture instead of the original's switches;
- attention is `torch.nn.functional.scaled_dot_product_attention`;
- drop path grows linearly over blocks, with one rate for all branches of a block; the
  original counts branches and increases the rates during training;
- b2 follows the switches of the published package, as timm does; the repository
  defines it in three ways and lists no results for it.

The group norms of the b variants average over channels and positions, so padding
changes them everywhere: pad batches as little as possible.
"""
from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from timm.models import register_notrace_module
from torch import Tensor, nn

from ..attention_maps import AttentionMap, Token
from ..base import PyramidBackbone, drop_path_rates
from ..efficientvit.blocks import (
    ConvStage,
    Residual,
    conv_norm_act,
    fused_block,
    init_from_scratch,
    inverted_block,
)
from ..layers import (
    ChannelsLastStem,
    PointwiseConv,
    autocast_disabled,
    is_eager,
)

MLP_RATIO = 4
MAX_FUSED_DIMS = 255  # wider stages have inverted instead of fused local blocks
# Kernel size and stride of the reduction before attention, stages 3 and 4
ATTENTION_GRIDS = {2: (5, 2), 3: (3, 1)}


def _arch(dims: int, depths: list[int], down_ratio: int = 6, stem_depth: int = 0,
          attention: bool = True, mlp: bool = True) -> dict:
    return dict(embed_dims=[2 * dims, 4 * dims, 8 * dims, 16 * dims],
                depths=depths, stem_dims=dims, stem_depth=stem_depth,
                down_ratio=down_ratio, attention=attention, mlp=mlp)


@MODELS.register_module()
class LowFormer(PyramidBackbone):
    """Convolutional stages 1 and 2, LowFormer blocks in stages 3 and 4.

    Args:
        arch (str | dict): 'b0', 'b1', 'b15', 'b2', 'b3', 'e1', 'e2', 'e3', or
            a dict with ``embed_dims`` and ``depths`` (blocks after the downsampling
            one) of the four stages; ``stem_dims`` and ``stem_depth``, channels and
            blocks at stride 2; ``down_ratio``, expansion of the downsampling blocks;
            and whether LowFormer blocks have ``attention`` and an ``mlp``.
            Defaults to 'b1'.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages to return.
            Defaults to (3, ).
        pretrain_size (int, optional): No effect: no magnitude in this family drifts
            with the resolution. (FLOPs per pixel do, through the softmax attention of
            stages 3 and 4: b0 has 7.5 % more at 800 x 1344 than at 224 x 224.)
            Defaults to None.
        drop_path_rate (float): Stochastic-depth rate of the last block, growing
            linearly from 0. Defaults to 0.05.
        frozen_stages (int): -1 none, 0 the stem, i up to stage i.
            Defaults to -1.
        norm_eval (bool): Keep batch norms in eval mode. Defaults to False.
        with_cp (bool): Recompute blocks in the backward pass.
            Defaults to False.
        init_cfg (dict | list[dict], optional): Initialisation.
            Defaults to None.

    Raises:
        ValueError: If an argument is out of range.

    Example:
        >>> import torch
        >>> model = LowFormer('b0', out_indices=(0, 1, 2, 3))
        >>> [tuple(x.shape) for x in model(torch.rand(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)]
    """

    ARCHS = {
        'b0': _arch(16, [0, 0, 3, 4], down_ratio=4),
        'b1': _arch(16, [0, 0, 5, 5]),
        'b15': _arch(20, [0, 0, 6, 6]),
        'b2': _arch(24, [0, 0, 6, 6]),
        'b3': _arch(32, [1, 2, 6, 6], stem_depth=1),
        'e1': _arch(20, [0, 0, 4, 4], attention=False, mlp=False),
        'e2': _arch(32, [1, 2, 4, 4], stem_depth=1, attention=False, mlp=False),
        'e3': _arch(32, [1, 2, 6, 6], stem_depth=1, mlp=False),
    }

    def __init__(self,
                 arch: str | dict = 'b1',
                 in_channels: int = 3,
                 out_indices: int | Sequence[int] = (3, ),
                 pretrain_size: int | None = None,
                 drop_path_rate: float = 0.05,
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None):
        super().__init__(arch, in_channels, out_indices, pretrain_size,
                         frozen_stages, norm_eval, with_cp, init_cfg)
        settings = self.arch_settings
        stem_dims = settings['stem_dims']
        rates = drop_path_rates(drop_path_rate, settings['depths'])
        self.stem = ChannelsLastStem(
            conv_norm_act(in_channels, stem_dims, 3, 2),
            *(Residual(fused_block(stem_dims, stem_dims))
              for _ in range(settings['stem_depth'])))
        self.stages = nn.ModuleList()
        in_dims = stem_dims
        for i in range(self.num_stages):
            dims = settings['embed_dims'][i]
            if i in ATTENTION_GRIDS:
                blocks: list[nn.Module] = [
                    lowformer_block(dims, *ATTENTION_GRIDS[i], settings['attention'],
                                    settings['mlp'], rate) for rate in rates[i]]
            else:
                blocks = [Residual(fused_block(dims, dims), rate)
                          for rate in rates[i]]
            downsample = fused_block(in_dims, dims, 2, settings['down_ratio'])
            self.stages.append(ConvStage(downsample, blocks, with_cp))
            in_dims = dims
        self._freeze_stages()

    def _init_from_scratch(self) -> None:
        init_from_scratch(self)


def lowformer_block(embed_dims: int, kernel_size: int, stride: int, attention: bool,
                    mlp: bool, drop_path_rate: float) -> nn.Sequential:
    """Build attention, MLP and local convolutions, each with a shortcut.

    Args:
        embed_dims (int): Channels C.
        kernel_size (int): Kernel size of the reduction before attention.
        stride (int): Stride of the reduction before attention.
        attention (bool): Whether the block has attention.
        mlp (bool): Whether it has an MLP; only then attention has a norm.
        drop_path_rate (float): Stochastic-depth rate of every branch.

    Returns:
        nn.Sequential: (B, C, H, W) -> (B, C, H, W).
    """
    branches = OrderedDict()
    if attention:
        attn = ConvAttention(embed_dims, kernel_size, stride)
        branches['attn'] = nn.Sequential(
            GlobalNorm(embed_dims), attn) if mlp else attn
    if mlp:
        hidden_dims = MLP_RATIO * embed_dims
        branches['mlp'] = nn.Sequential(
            GlobalNorm(embed_dims), PointwiseConv(embed_dims, hidden_dims),
            nn.GELU(), PointwiseConv(hidden_dims, embed_dims))
    if embed_dims <= MAX_FUSED_DIMS:
        # A bias before a norm has no effect, but checkpoints have it
        branches['local'] = fused_block(embed_dims, embed_dims, bias=True)
    else:
        branches['local'] = inverted_block(embed_dims, embed_dims)
    return nn.Sequential(OrderedDict(
        (name, Residual(body, drop_path_rate)) for name, body in branches.items()))


@register_notrace_module
class GlobalNorm(nn.GroupNorm):
    """Group norm with one group, which keeps type and memory layout on any device.

    PyTorch's returns float32 under autocast, and NCHW on CUDA.

    Args:
        embed_dims (int): Channels C.
    """

    def __init__(self, embed_dims: int):
        super().__init__(1, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        with autocast_disabled(x):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            channels_last = x.is_contiguous(memory_format=torch.channels_last)
            if x.device.type == 'cpu' or not is_eager() or not channels_last:
                return F.group_norm(x, 1, weight, bias, self.eps)
            return _channels_last_norm(x, weight, bias, self.eps)


def _channels_last_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    x = F.layer_norm(x, x.shape[1:], eps=eps)
    return torch.addcmul(bias, x, weight).permute(0, 3, 1, 2)


@register_notrace_module
class ConvAttention(nn.Module):
    """Softmax attention between two convolutions ("Lowtention").

    A depthwise convolution reduces the resolution; a transposed convolution, which is
    the output projection as well, restores it.

    Args:
        embed_dims (int): Channels C.
        kernel_size (int): Kernel size of the depthwise convolution.
        stride (int): 1 or 2.
    """

    def __init__(self, embed_dims: int, kernel_size: int, stride: int):
        super().__init__()
        self.num_heads = max(1, embed_dims // 60)
        self.stride = stride
        attn_dims = self.num_heads * (embed_dims // self.num_heads // 2)
        self.reduce = conv_norm_act(embed_dims, embed_dims, kernel_size, stride,
                                    groups=embed_dims, act=False)
        self.qkv = PointwiseConv(embed_dims, 3 * attn_dims, bias=False)
        self.proj = nn.ConvTranspose2d(attn_dims, embed_dims, 2 + stride, stride,
                                       padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        height, width = x.shape[2:]
        # Fused kernels need contiguous channels; a copy unless x is channels last
        qkv = self.qkv(self.reduce(x)).permute(0, 2, 3, 1).contiguous()
        rows, columns = qkv.shape[1:3]  # (B, h, w, 3E)
        qkv = qkv.flatten(1, 2).unflatten(2, (self.num_heads, 3, -1))
        query, key, value = qkv.transpose(1, 2).unbind(3)  # (B, heads, h * w, d)
        out = F.scaled_dot_product_attention(query, key, value)
        out = out.transpose(1, 2).flatten(2).unflatten(1, (rows, columns))
        out = self.proj(out.permute(0, 3, 1, 2))
        if self.stride == 1:
            return out
        # Odd sizes come back one row or column too large. Negative padding crops like
        # slicing, and exports with dynamic sizes.
        return F.pad(out, (0, width - self.stride * columns,
                           0, height - self.stride * rows))

    def attention_maps(self, x: Tensor, token: Token) -> list[AttentionMap]:
        """Softmax row of the token, on the reduced grid.

        See :class:`~mm_efficient.models.attention_maps.Mappable`.
        """
        qkv = self.qkv(self.reduce(x))[0]  # (3 E, h', w')
        rows, columns = qkv.shape[1:]
        query, key, _ = qkv.flatten(1).unflatten(0, (self.num_heads, 3, -1)).unbind(1)
        index = token.row // self.stride * columns + token.column // self.stride
        scores = torch.einsum('hd,hdn->hn', query[:, :, index], key)
        weights = (scores * query.shape[1]**-0.5).softmax(-1)  # (heads, N')
        pixels = self.stride * token.stride
        return [AttentionMap('softmax of the token',
                             weights.unflatten(-1, (rows, columns)),
                             (rows * pixels, columns * pixels))]
