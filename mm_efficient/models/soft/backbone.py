"""SOFT: softmax-free transformers with linear complexity.

Papers: https://arxiv.org/abs/2110.11945 (NeurIPS 2021) and
https://arxiv.org/abs/2207.03341 (IJCV 2024, the normalised family).
Original: https://github.com/fudan-zvg/SOFT, MIT licence, Zhang Vision Group,
Fudan University. This file is written from the architecture's description.

Differences from the original, none of which affects published weights:

- attention is computed as K (M (K^T v)) in chunks of tokens;
- SOFT-Norm chooses the start factor of its inverse per image instead of per batch
  (the same function for a single image);
- ``pretrain_size`` bounds the number of landmarks and the sum over tokens, so
  compute is linear in image size;
- for dense prediction the last feature map is taken after the final norm, without
  the class token (the original dense-prediction code was not published);
- small has 7 blocks in stage 3 as in every published table; the published factory's
  20 blocks are the arch ``small_d20``.
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmpretrain.models.utils import MultiheadAttention
from mmpretrain.registry import MODELS
from timm.models import register_notrace_function, register_notrace_module
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from ..attention_maps import AttentionMap, Token, softmax_rows
from ..base import NUM_STAGES, PyramidBackbone, drop_path_rates, run_blocks
from ..layers import LayerNorm, is_eager
from ..recomputing import RecomputingStem, gelu_then
from .attention import HEAD_DIMS, SOFTAttention

MLP_RATIO = 4
STEM_DIMS = 32
LANDMARK_RATIOS = (8, 4, 2)  # tokens per landmark and side, stages 1 to 3
VALUE_KERNELS = (9, 5, 3)  # kernel of the value convolution, stages 1 to 3
POSITION_GRIDS = (56, 28, 14, 7)  # side of the learned position embeddings


@MODELS.register_module()
class SOFT(PyramidBackbone):
    """Softmax-free transformer, plain or normalised.

    Stages 1 to 3 attend through landmarks with a Gaussian kernel; stage 4 is an
    ordinary transformer with a class token. A checkpoint fits both SOFT and SOFT-Norm
    but was trained for one of them: set ``normalized`` accordingly.

    Args:
        arch (str | dict): 'tiny', 'small', 'medium', 'large', 'huge' or
            'small_d20' (small as in the published factory), or a dict with
            ``embed_dims`` (multiples of 32) and ``depths`` of the four stages.
            Defaults to 'small'.
        normalized (bool): Use the degree-normalised inverse (SOFT-Norm, all
            published COCO and ADE20K results). Defaults to False.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages to return.
            Defaults to (3, ).
        out_type (str): 'featmap' to return feature maps, 'cls_token' to return the
            class token, (B, C), for a linear head, or 'raw' for all tokens, (B, 1 + h
            w, C), the class token first, as in MMPretrain. The latter two need
            ``out_indices=(3, )``. Defaults to 'featmap'.
        pretrain_size (int, optional): Image side in pixels during pre-training,
            published: 224. If given, larger images get no more landmarks than an
            image of that size (they are averaged over a grid), and the sum over
            tokens is scaled to that size. Defaults to None.
        drop_path_rate (float): Stochastic-depth rate of the last block, growing
            linearly from 0. Defaults to 0.1.
        drop_type (str): How stages 1 to 3 apply the rate: 'dropout' of single
            elements, as published, or 'drop_path'. Stage 4 always uses drop path.
            Defaults to 'dropout'.
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
        >>> model = SOFT('tiny', out_indices=(0, 1, 2, 3), pretrain_size=224)
        >>> [tuple(x.shape) for x in model(torch.rand(1, 3, 64, 96))]
        [(1, 64, 16, 24), (1, 128, 8, 12), (1, 320, 4, 6), (1, 512, 2, 3)]
    """

    ARCHS = {
        'tiny': dict(embed_dims=[64, 128, 320, 512], depths=[1, 2, 3, 2]),
        'small': dict(embed_dims=[64, 128, 320, 512], depths=[1, 3, 7, 4]),
        'small_d20': dict(embed_dims=[64, 128, 320, 512], depths=[1, 3, 20, 4]),
        'medium': dict(embed_dims=[64, 128, 288, 512], depths=[1, 3, 29, 5]),
        'large': dict(embed_dims=[64, 128, 320, 512], depths=[1, 3, 40, 5]),
        'huge': dict(embed_dims=[64, 128, 352, 512], depths=[1, 5, 49, 5]),
    }

    def __init__(self,
                 arch: str | dict = 'small',
                 normalized: bool = False,
                 in_channels: int = 3,
                 out_indices: int | Sequence[int] = (3, ),
                 out_type: str = 'featmap',
                 pretrain_size: int | None = None,
                 drop_path_rate: float = 0.1,
                 drop_type: str = 'dropout',
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None):
        super().__init__(arch, in_channels, out_indices, pretrain_size,
                         frozen_stages, norm_eval, with_cp, init_cfg)
        self._check_choices(out_type, drop_type)
        self.out_type = out_type
        self.normalized = normalized
        dims = self.arch_settings['embed_dims']
        rates = drop_path_rates(drop_path_rate, self.arch_settings['depths'])
        element_drop = nn.Dropout if drop_type == 'dropout' else DropPath

        self.stem = RecomputingStem(
            *_conv_bn_relu(in_channels, STEM_DIMS, 2),
            *_conv_bn_relu(STEM_DIMS, STEM_DIMS, 1),
            *_conv_bn_relu(STEM_DIMS, dims[0], 2))
        self.stages = nn.ModuleList()
        for i in range(self.num_stages):
            downsample = nn.Sequential(
                *_conv_bn_relu(dims[i - 1], dims[i], 2)) if i else nn.Identity()
            if i == NUM_STAGES - 1:
                self.stages.append(ClassTokenStage(
                    dims[i], POSITION_GRIDS[i], downsample,
                    [TransformerBlock(dims[i], rate) for rate in rates[i]], with_cp))
                continue
            grid = pretrain_size and pretrain_size // (4 * 2**i)
            blocks = [
                SOFTBlock(dims[i], SOFTAttention(dims[i], LANDMARK_RATIOS[i],
                                                 VALUE_KERNELS[i], normalized, grid),
                          element_drop(rate)) for rate in rates[i]]
            self.stages.append(SOFTStage(dims[i], POSITION_GRIDS[i], downsample, blocks,
                                         with_cp))
        if self.num_stages == NUM_STAGES:
            self.norm = nn.LayerNorm(dims[-1], eps=1e-6)
        self._freeze_stages()

    def _check_choices(self, out_type: str, drop_type: str) -> None:
        if out_type not in ('featmap', 'cls_token', 'raw'):
            raise ValueError("out_type must be 'featmap', 'cls_token' or 'raw', got "
                             f'{out_type!r}')
        if out_type != 'featmap' and self.out_indices != (3, ):
            raise ValueError(f'out_type={out_type!r} needs out_indices=(3, ), got '
                             f'{self.out_indices}')
        if drop_type not in ('dropout', 'drop_path'):
            raise ValueError("drop_type must be 'dropout' or 'drop_path', got "
                             f'{drop_type!r}')
        if any(dims % HEAD_DIMS for dims in self.feature_channels):
            raise ValueError(f'embed_dims must be multiples of {HEAD_DIMS}, the '
                             f'width of a head, got {self.feature_channels}')

    def _feature_map(self, index: int, x: Any) -> Tensor:
        if index < NUM_STAGES - 1:
            return x
        class_token, x = x  # (B, C), (B, h, w, C)
        if self.out_type == 'cls_token':
            return self.norm(class_token)
        if self.out_type == 'raw':
            return self.norm(torch.cat([class_token[:, None], x.flatten(1, 2)], 1))
        return self.norm(x).permute(0, 3, 1, 2)

    def _init_from_scratch(self) -> None:
        """Initialise linear layers and embeddings from a truncated normal.

        In SOFT-Norm the linear layers of stages 1 to 3 keep PyTorch's
        initialisation: the original creates these stages again afterwards.
        """
        for i, stage in enumerate(self.stages):
            for parameter in stage.parameters(recurse=False):
                trunc_normal_(parameter, std=0.02)
            if self.normalized and i < NUM_STAGES - 1:
                continue
            for module in stage.modules():
                if isinstance(module, nn.Linear):
                    trunc_normal_(module.weight, std=0.02)
                    nn.init.zeros_(module.bias)


def _conv_bn_relu(in_dims: int, out_dims: int, stride: int) -> list[nn.Module]:
    return [nn.Conv2d(in_dims, out_dims, 3, stride, 1), nn.BatchNorm2d(out_dims),
            nn.ReLU(inplace=True)]


class SOFTStage(nn.Module):
    """Stage 1, 2 or 3: position embedding and SOFT blocks.

    Args:
        embed_dims (int): Channels C.
        position_grid (int): Side of the learned position embedding.
        downsample (nn.Module): Downsamples the output of the previous stage.
        blocks (Sequence[nn.Module]): Blocks on (B, h, w, C).
        with_cp (bool): Recompute blocks in the backward pass.
    """

    def __init__(self, embed_dims: int, position_grid: int, downsample: nn.Module,
                 blocks: Sequence[nn.Module], with_cp: bool):
        super().__init__()
        self.downsample = downsample
        self.pos_embed = nn.Parameter(torch.zeros(1, position_grid**2, embed_dims))
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, h, w)."""
        x = self.downsample(x).permute(0, 2, 3, 1)  # (B, h, w, C)
        x = x + resize_position(self.pos_embed, x.shape[1:3]).to(x.dtype)
        x = run_blocks(self.blocks, x, self.with_cp)
        return x.permute(0, 3, 1, 2)


class ClassTokenStage(nn.Module):
    """Stage 4: class token, position embedding and transformer blocks.

    Args:
        embed_dims (int): Channels C.
        position_grid (int): Side of the learned position embedding.
        downsample (nn.Module): Leads from stage 3 to this one's grid.
        blocks (Sequence[nn.Module]): Blocks on (B, 1 + N, C).
        with_cp (bool): Recompute blocks in the backward pass.
    """

    def __init__(self, embed_dims: int, position_grid: int, downsample: nn.Module,
                 blocks: Sequence[nn.Module], with_cp: bool):
        super().__init__()
        self.downsample = downsample
        self.cls_token = nn.Parameter(torch.zeros(1, 1, embed_dims))
        self.pos_embed = nn.Parameter(
            torch.zeros(1, 1 + position_grid**2, embed_dims))
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C_in, H, W) -> class token (B, C) and feature map (B, h, w, C)."""
        x = self.downsample(x).permute(0, 2, 3, 1)  # (B, h, w, C)
        shape = x.shape
        x = x + resize_position(self.pos_embed[:, 1:], shape[1:3])
        class_token = self.cls_token + self.pos_embed[:, :1]
        x = torch.cat([class_token.expand(shape[0], -1, -1), x.flatten(1, 2)], 1)
        x = run_blocks(self.blocks, x, self.with_cp)  # (B, 1 + N, C)
        return x[:, 0], x[:, 1:].reshape(shape)


@register_notrace_function
def resize_position(pos_embed: Tensor, size: Sequence[int]) -> Tensor:
    """Resize a square position embedding bilinearly, as the original does.

    Args:
        pos_embed (Tensor): (1, side * side, C).
        size (Sequence[int]): Target rows h and columns w.

    Returns:
        Tensor: (1, h, w, C), bit-equal to the input if h = w = side.
    """
    side = int(pos_embed.shape[1]**0.5)
    grid = pos_embed.unflatten(1, (side, side))
    if is_eager() and tuple(size) == (side, side):
        return grid
    grid = F.interpolate(grid.permute(0, 3, 1, 2), size=tuple(size), mode='bilinear',
                         align_corners=False)
    return grid.permute(0, 2, 3, 1)


class SOFTBlock(nn.Module):
    """Post-norm block of stages 1 to 3.

    Args:
        embed_dims (int): Channels C.
        attn (nn.Module): Attention on (B, h, w, C).
        drop (nn.Module): Dropout or drop path for both branches.
    """

    onnx_function = True  # slow to trace unless sizes are inputs

    def __init__(self, embed_dims: int, attn: nn.Module, drop: nn.Module):
        super().__init__()
        self.attn = attn
        self.norm1 = LayerNorm(embed_dims)
        self.mlp = Mlp(embed_dims, 'tanh')
        self.norm2 = LayerNorm(embed_dims)
        self.drop = drop

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        x = self.norm1(x + self.drop(self.attn(x))).to(x.dtype)
        return self.norm2(x + self.drop(self.mlp(x)))


@register_notrace_module
class ClassTokenAttention(MultiheadAttention):
    """Softmax attention between a class token, which comes first, and all others."""

    def attention_maps(self, x: Tensor, token: Token) -> list[AttentionMap]:
        """Softmax rows of the token and of the class token.

        See :class:`~mm_efficient.models.attention_maps.Mappable`.
        """
        rows = softmax_rows(self, x, [1 + token.index, 0])[..., 1:]
        of_token, of_class = rows.unflatten(-1, token.grid).unbind(1)
        return [AttentionMap('softmax of the token', of_token, token.extent),
                AttentionMap('softmax of the class token', of_class, token.extent,
                             by_token=False)]


class TransformerBlock(nn.Module):
    """Pre-norm softmax block of stage 4.

    Args:
        embed_dims (int): Channels C, heads of 32 channels.
        drop_path_rate (float): Rate of stochastic depth.
    """

    def __init__(self, embed_dims: int, drop_path_rate: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.attn = ClassTokenAttention(embed_dims, embed_dims // HEAD_DIMS)
        self.norm2 = nn.LayerNorm(embed_dims, eps=1e-6)
        self.mlp = Mlp(embed_dims, 'none')
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Mlp(nn.Module):
    """Linear layer to width 4 C, GELU, linear layer back.

    Args:
        embed_dims (int): Channels C.
        approximate (str): Form of GELU, 'none' or 'tanh'.
    """

    def __init__(self, embed_dims: int, approximate: str):
        super().__init__()
        self.approximate = approximate
        self.fc1 = nn.Linear(embed_dims, MLP_RATIO * embed_dims)
        self.fc2 = nn.Linear(MLP_RATIO * embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        return gelu_then(self.fc2, self.fc1(x), self.approximate)
