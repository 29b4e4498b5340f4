"""ReduceFormer: attention by sums instead of products of tokens.

Paper: https://arxiv.org/abs/2406.07488 (CVPR 2024 workshop). Original:
https://github.com/NVIDIA/DL4AGX, folder Models/ReduceFormer, a plug-in for
https://github.com/mit-han-lab/efficientvit (Apache-2.0). The folder contains
the Apache-2.0 licence text, but its README restricts use to research and other
non-commercial purposes. This file is written from the architecture's
description and contains no code from either. No weights were published.

Differences from the original:

- the sums are evaluated in closed form, in float32 under autocast;
- ``pretrain_size`` removes the growth with the number of tokens; at that size it has
  no effect;
- drop path grows linearly from 0 over all blocks except the downsampling ones, with one
  rate for both branches of a block; the original counts branches and increases the
  rates during training;
- b2 has the depths of the published code, 24.0 M parameters; the published table
  (24.5 M) seems to describe an earlier, deeper one.
"""
from collections import OrderedDict
from collections.abc import Sequence

import torch
from mmpretrain.registry import MODELS
from timm.models import register_notrace_module
from torch import Tensor, nn

from ...kernels import MAX_CHANNELS, use_kernel
from ..attention_maps import AttentionMap, Token
from ..base import PyramidBackbone, drop_path_rates
from ..efficientvit.blocks import (
    ConvStage,
    Residual,
    conv_norm_act,
    init_from_scratch,
    inverted_block,
)
from ..layers import ChannelsLastStem, PointwiseConv, autocast_disabled
from .reduction_attention import EPS, reduction_attention

ATTENTION_STAGES = (2, 3)
LOCAL_KERNEL = 5


@MODELS.register_module()
class ReduceFormer(PyramidBackbone):
    """Inverted blocks in stages 1 and 2, ReduceFormer blocks in 3 and 4.

    Args:
        arch (str | dict): 'b1', 'b2', 'b3', or a dict with ``embed_dims`` and
            ``depths`` (blocks after the downsampling one) of the four stages, and
            ``stem_dims`` and ``stem_depth``, channels and blocks at stride 2.
            Defaults to 'b1'.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages to return.
            Defaults to (3, ).
        pretrain_size (int, optional): Image side in pixels during pre-training,
            published: 128 to 288, evaluated at 224. If given, the sums over tokens are
            scaled to that size. Needed for detection and segmentation: otherwise the
            output of attention grows with the square of the number of tokens.
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
        >>> model = ReduceFormer('b1', out_indices=(0, 1, 2, 3), pretrain_size=224)
        >>> [tuple(x.shape) for x in model(torch.rand(1, 3, 64, 96))]
        [(1, 32, 16, 24), (1, 64, 8, 12), (1, 128, 4, 6), (1, 256, 2, 3)]
    """

    ARCHS = {
        'b1': dict(embed_dims=[32, 64, 128, 256], depths=[1, 2, 3, 4],
                   stem_dims=16, stem_depth=1),
        'b2': dict(embed_dims=[48, 96, 192, 384], depths=[2, 3, 4, 6],
                   stem_dims=24, stem_depth=1),
        'b3': dict(embed_dims=[64, 128, 256, 512], depths=[3, 5, 6, 9],
                   stem_dims=32, stem_depth=1),
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
            *(Residual(separable_block(stem_dims))
              for _ in range(settings['stem_depth'])))
        self.stages = nn.ModuleList()
        in_dims = stem_dims
        for i in range(self.num_stages):
            dims = settings['embed_dims'][i]
            if i in ATTENTION_STAGES:
                tokens = pretrain_size and (-(-pretrain_size // (4 * 2**i)))**2
                blocks: list[nn.Module] = [
                    reduceformer_block(dims, tokens, rate) for rate in rates[i]]
            else:
                blocks = [Residual(inverted_block(dims, dims, hidden_norms=True), rate)
                          for rate in rates[i]]
            downsample = inverted_block(in_dims, dims, 2,
                                        hidden_norms=i not in ATTENTION_STAGES)
            self.stages.append(ConvStage(downsample, blocks, with_cp))
            in_dims = dims
        self._freeze_stages()

    def _init_from_scratch(self) -> None:
        init_from_scratch(self)


def separable_block(dims: int) -> nn.Sequential:
    """3 x 3 depthwise and 1 x 1 convolution, (B, C, H, W) -> (B, C, H, W)."""
    return nn.Sequential(OrderedDict(
        depthwise=conv_norm_act(dims, dims, 3, groups=dims),
        project=conv_norm_act(dims, dims, 1, act=False)))


def reduceformer_block(embed_dims: int, pretrain_tokens: int | None,
                       drop_path_rate: float) -> nn.Sequential:
    """Build attention and local convolutions, each with a shortcut.

    Args:
        embed_dims (int): Channels C.
        pretrain_tokens (int, optional): Number of tokens during pre-training.
        drop_path_rate (float): Stochastic-depth rate of both branches.

    Returns:
        nn.Sequential: (B, C, H, W) -> (B, C, H, W).
    """
    return nn.Sequential(OrderedDict(
        attn=Residual(ReductionAttention(embed_dims, pretrain_tokens), drop_path_rate),
        local=Residual(inverted_block(embed_dims, embed_dims), drop_path_rate)))


@register_notrace_module
class ReductionAttention(nn.Module):
    """Attention by sums over the projections and over a depthwise convolution of them.

    Under autocast everything from the sums to the output norm runs in float32: the sums
    exceed the range of float16. A model converted to half precision projects in half
    precision.

    Args:
        embed_dims (int): Channels C.
        pretrain_tokens (int, optional): Number of tokens during pre-training, to
            which the sums are scaled. None: no scaling.
    """

    float32_only = True  # the sums exceed the range of float16

    def __init__(self, embed_dims: int, pretrain_tokens: int | None):
        super().__init__()
        self.pretrain_tokens = pretrain_tokens
        self.qkv = PointwiseConv(embed_dims, 3 * embed_dims, bias=False)
        self.local = nn.Conv2d(3 * embed_dims, 3 * embed_dims, LOCAL_KERNEL,
                               padding=LOCAL_KERNEL // 2, groups=3 * embed_dims,
                               bias=False)
        self.proj = conv_norm_act(2 * embed_dims, embed_dims, 1,
                                  act=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        qkv = self.qkv(x)
        local = self.local(qkv)  # 5 x 5 neighbourhoods, (B, 3C, H, W)
        with autocast_disabled(x):
            out = self.proj(self.attend(qkv, local))
        return out.to(qkv.dtype)

    def attend(self, qkv: Tensor, local: Tensor) -> Tensor:
        """Reduction attention over both scales, 2 x (B, 3C, H, W) -> (B, 2C, H, W)."""
        dtype = self.qkv.weight.dtype
        if use_kernel(qkv, local) and qkv.shape[1] <= 3 * MAX_CHANNELS:
            return torch.ops.mm_efficient.reduction_attention(
                qkv, local, self.pretrain_tokens, dtype)[0]
        # A view that splits or joins the channels of a single channels-last image makes
        # PyTorch lose its layout, and the next convolution copy it; one of the last
        # dimension does not
        scales = torch.cat([qkv, local], 1).movedim(1, -1).unflatten(-1, (6, -1))
        scales = scales.permute(0, 3, 4, 1, 2)  # (B, 6, C, H, W)
        query, key, value = (scales[:, i::3] for i in range(3))  # (B, 2, C, H, W)
        out = reduction_attention(query, key, value, self.pretrain_tokens)
        return out.permute(0, 3, 4, 1, 2).flatten(-2).movedim(-1, 1).to(dtype)

    def attention_maps(self, x: Tensor, token: Token) -> list[AttentionMap]:
        """Compute the share of every channel at a position.

        See :class:`~mm_efficient.models.attention_maps.Mappable`.
        """
        qkv = self.qkv(x)
        scales = [t[0].chunk(3) for t in (qkv, self.local(qkv))]
        query, key, value = (torch.cat(pair) for pair in zip(*scales))  # (2 C, h, w)
        gate = query.relu() / (query.relu().sum(0) + EPS)
        # One number per channel, that its gate hands out: a sum over all positions
        pooled = (key.relu().mean((1, 2)) * value.mean((1, 2))).abs()
        return [AttentionMap(
            'share of a channel at a position', gate, token.extent, parts='channel',
            order=(gate.std((1, 2)) * pooled).argsort(descending=True).tolist(),
            summary=(gate * pooled[:, None, None]).sum(0)
            / pooled.sum().clamp_min(EPS),
            summary_title='shares weighted by what they gate', by_token=False)]
