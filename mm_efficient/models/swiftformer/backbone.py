"""SwiftFormer: convolutions, and one additive attention per stage.

Paper: https://arxiv.org/abs/2303.15446 (ICCV 2023).
Original: https://github.com/Amshaker/SwiftFormer, Apache-2.0 licence. This
file is written from the architecture's description.

Differences from the original, none of which affects published weights:

- the linear layers of the attention are 1x1 convolutions on feature maps, a single one
  for query and key;
- norms and sums over tokens run in float32 under autocast;
- the factor C^-0.5 of the attention scores, which cancels, is left out;
- ``pretrain_size`` can keep the global query at its magnitude during pre-training;
  without it, it grows with the side of the image;
- the classifier (batch norm, two linear layers) is the head
  :class:`~mm_efficient.models.heads.DistilledClsHead`.

As in the original, the sum over tokens includes the padding of a batch.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmpretrain.registry import MODELS
from timm.models import register_notrace_module
from torch import Tensor, nn
from torch.nn.init import trunc_normal_
from torch.nn.modules.batchnorm import _BatchNorm

from ..attention_maps import AttentionMap, Token
from ..base import PyramidBackbone, drop_path_rates, run_blocks
from ..layers import (
    ChannelsLastStem,
    PointwiseConv,
    is_eager,
)
from ..recomputing import gelu_then
from .additive_attention import global_query, unit

MLP_RATIO = 4
SCALE_INIT = 1e-5  # layer scale of attention and MLP


@MODELS.register_module()
class SwiftFormer(PyramidBackbone):
    """Convolutional stages, each of which ends with efficient additive attention.

    Args:
        arch (str | dict): 'xs', 's', 'l1', 'l3', or a dict with
            ``embed_dims`` (the first one even) and ``depths`` of the four stages;
            the last block of each stage has the attention. Defaults to 'xs'.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages to return.
            Defaults to (3, ).
        output_norm (bool): Give every returned feature map a batch norm, as the
            original does for dense prediction. Classifier weights lack these norms,
            which start as the identity. Defaults to False.
        pretrain_size (int, optional): Image side in pixels during pre-training,
            published: 224. If given, the global query is scaled by the square root of
            the number of tokens at that size over that of the image.
            Defaults to None.
        drop_path_rate (float): Stochastic-depth rate of the last block, growing
            linearly from 0 over all blocks. As in the original it applies only to
            attention and MLP, in the last block of a stage. Defaults to 0.
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
        >>> model = SwiftFormer('xs', out_indices=(0, 1, 2, 3), output_norm=True)
        >>> [tuple(x.shape) for x in model(torch.rand(2, 3, 64, 96))]
        [(2, 48, 16, 24), (2, 56, 8, 12), (2, 112, 4, 6), (2, 220, 2, 3)]
    """

    ARCHS = {
        'xs': dict(embed_dims=[48, 56, 112, 220], depths=[3, 3, 6, 4]),
        's': dict(embed_dims=[48, 64, 168, 224], depths=[3, 3, 9, 6]),
        'l1': dict(embed_dims=[48, 96, 192, 384], depths=[4, 3, 10, 5]),
        'l3': dict(embed_dims=[64, 128, 320, 512], depths=[4, 4, 12, 6]),
    }
    DENSE_ONLY = (r'output_norms\..*', )

    def __init__(self,
                 arch: str | dict = 'xs',
                 in_channels: int = 3,
                 out_indices: int | Sequence[int] = (3, ),
                 output_norm: bool = False,
                 pretrain_size: int | None = None,
                 drop_path_rate: float = 0.,
                 frozen_stages: int = -1,
                 norm_eval: bool = False,
                 with_cp: bool = False,
                 init_cfg: dict | list[dict] | None = None):
        super().__init__(arch, in_channels, out_indices, pretrain_size,
                         frozen_stages, norm_eval, with_cp, init_cfg)
        dims = self.arch_settings['embed_dims']
        rates = drop_path_rates(drop_path_rate, self.arch_settings['depths'])
        self.stem = ChannelsLastStem(
            *_conv_bn(in_channels, dims[0] // 2), nn.ReLU(inplace=True),
            *_conv_bn(dims[0] // 2, dims[0]), nn.ReLU(inplace=True))
        self.stages = nn.ModuleList()
        for i in range(self.num_stages):
            downsample = nn.Sequential(
                *_conv_bn(dims[i - 1], dims[i])) if i else nn.Identity()
            grid = pretrain_size and -(-pretrain_size // (4 * 2**i))
            blocks: list[nn.Module] = [
                ConvBlock(dims[i], MLP_RATIO) for _ in rates[i][:-1]]
            blocks.append(EncoderBlock(dims[i], grid, rates[i][-1]))
            self.stages.append(SwiftFormerStage(downsample, blocks, with_cp))
        self.output_norms = nn.ModuleDict({
            str(i): nn.BatchNorm2d(dims[i]) for i in self.out_indices
        } if output_norm else {})
        self._freeze_stages()

    def _feature_map(self, index: int, x: Tensor) -> Tensor:
        # The next stage continues without the norm
        key = str(index)
        return self.output_norms[key](x) if key in self.output_norms else x

    def _init_from_scratch(self) -> None:
        """Initialise convolutions as published: truncated normal, zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)


def _conv_bn(in_dims: int, out_dims: int) -> list[nn.Module]:
    """Halve the resolution."""
    return [nn.Conv2d(in_dims, out_dims, 3, 2, 1), nn.BatchNorm2d(out_dims)]


class SwiftFormerStage(nn.Module):
    """One stage.

    Args:
        downsample (nn.Module): Downsamples the output of the previous stage.
        blocks (Sequence[nn.Module]): Blocks on (B, C, h, w).
        with_cp (bool): Recompute blocks in the backward pass.
    """

    def __init__(self, downsample: nn.Module, blocks: Sequence[nn.Module],
                 with_cp: bool):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, h, w)."""
        return run_blocks(self.blocks, self.downsample(x), self.with_cp)


class ConvBlock(nn.Module):
    """Depthwise 3x3 convolution and an MLP over channels, with a shortcut.

    Args:
        embed_dims (int): Channels C.
        mlp_ratio (int): Hidden width of the MLP over C.
    """

    def __init__(self, embed_dims: int, mlp_ratio: int):
        super().__init__()
        self.dwconv = nn.Conv2d(embed_dims, embed_dims, 3, padding=1,
                                groups=embed_dims)
        self.mlp = Mlp(embed_dims, mlp_ratio)
        self.layer_scale: nn.Parameter | None = _layer_scale(embed_dims, 1.)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return _add_scaled(x, self.layer_scale, self.mlp(self.dwconv(x)))

    def switch_to_deploy(self) -> None:
        """Fold the norm and the layer scale into the MLP, for inference."""
        self.mlp.switch_to_deploy()
        if self.layer_scale is not None:
            _scale_output(self.mlp.fc2, self.layer_scale)
            self.layer_scale = None


class EncoderBlock(nn.Module):
    """Local representation, additive attention and MLP.

    Args:
        embed_dims (int): Channels C.
        pretrain_grid (int, optional): See :class:`AdditiveAttention`.
        drop_path_rate (float): Stochastic-depth rate of the attention and MLP branches.
    """

    def __init__(self, embed_dims: int, pretrain_grid: int | None,
                 drop_path_rate: float):
        super().__init__()
        self.local = ConvBlock(embed_dims, 1)
        self.attn = AdditiveAttention(embed_dims, pretrain_grid)
        self.attn_scale: nn.Parameter | None = _layer_scale(embed_dims, SCALE_INIT)
        self.mlp = Mlp(embed_dims, MLP_RATIO)
        self.mlp_scale: nn.Parameter | None = _layer_scale(embed_dims, SCALE_INIT)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        x = self.local(x)
        x = _add_scaled(x, self.attn_scale, self.drop_path(self.attn(x)))
        return _add_scaled(x, self.mlp_scale, self.drop_path(self.mlp(x)))

    def switch_to_deploy(self) -> None:
        """Fold norms and layer scales into the convolutions, for inference."""
        self.local.switch_to_deploy()
        self.mlp.switch_to_deploy()
        if self.attn_scale is not None and self.mlp_scale is not None:
            _scale_output(self.attn.final, self.attn_scale)
            _scale_output(self.mlp.fc2, self.mlp_scale)
            self.attn_scale = self.mlp_scale = None


@register_notrace_module
class AdditiveAttention(nn.Module):
    """Efficient additive attention with one head.

    Args:
        embed_dims (int): Channels C.
        pretrain_grid (int, optional): Side of the token grid during pre-training, to
            which the global query is scaled. None: no scaling.
    """

    def __init__(self, embed_dims: int, pretrain_grid: int | None):
        super().__init__()
        self.pretrain_grid = pretrain_grid
        self.qk = PointwiseConv(embed_dims, 2 * embed_dims)
        self.score_weight = nn.Parameter(torch.randn(embed_dims, 1))
        self.proj = PointwiseConv(embed_dims, embed_dims)
        self.final = PointwiseConv(embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        qk = self.qk(x).permute(0, 2, 3, 1)  # (B, h, w, 2 C), a view
        query, gated = (t.to(qk.dtype).permute(0, 3, 1, 2) for t in self._attend(qk))
        return self.final(self.proj(gated) + query)

    def attention_maps(self, x: Tensor, token: Token) -> list[AttentionMap]:
        """Weights of all tokens in the global query.

        See :class:`~mm_efficient.models.attention_maps.Mappable`.
        """
        query = F.normalize(self.qk(x)[0].chunk(2)[0], dim=0)  # (C, h, w)
        scores = torch.einsum('chw,co->ohw', query, self.score_weight)
        weights = scores / scores.norm().clamp_min(1e-12)
        return [AttentionMap('weight in the global query', weights, token.extent,
                             signed=True, by_token=False)]

    def _attend(self, qk: Tensor) -> tuple[Tensor, Tensor]:
        """Return normalised queries and gated keys, both (B, h, w, C), in float32."""
        query, key = unit(qk.unflatten(-1, (2, -1))).unbind(-2)
        gate = global_query(query, self.score_weight)
        tokens = qk.shape[1] * qk.shape[2]
        if self.pretrain_grid and not (is_eager() and tokens == self.pretrain_grid**2):
            gate = gate * (self.pretrain_grid**2 / tokens)**0.5
        return query, gate * key


class Mlp(nn.Module):
    """Batch norm, and two 1x1 convolutions with an activation between.

    Args:
        embed_dims (int): Channels C.
        ratio (int): Hidden width over C.
    """

    def __init__(self, embed_dims: int, ratio: int):
        super().__init__()
        self.norm: nn.Module = nn.BatchNorm2d(embed_dims)
        self.fc1 = PointwiseConv(embed_dims, ratio * embed_dims)
        self.fc2 = PointwiseConv(ratio * embed_dims, embed_dims)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return gelu_then(self.fc2, self.fc1(self.norm(x)))

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Fold the norm into the first convolution, for inference."""
        norm, weight = self.norm, self.fc1.weight
        if not isinstance(norm, _BatchNorm):
            return
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - scale * norm.running_mean
        self.fc1.bias.add_(weight.flatten(1) @ shift)
        weight.mul_(scale[:, None, None])
        self.norm = nn.Identity()


def _layer_scale(embed_dims: int, value: float) -> nn.Parameter:
    """Make a layer scale shaped as in the original, which decays all but vectors."""
    return nn.Parameter(torch.full((embed_dims, 1, 1), value))


def _add_scaled(x: Tensor, scale: Tensor | None, branch: Tensor) -> Tensor:
    if scale is None:
        return x + branch
    # In the branch's type: autocast would make all three float32
    return torch.addcmul(x, scale.to(branch.dtype), branch)


@torch.no_grad()
def _scale_output(conv: nn.Conv2d, scale: Tensor) -> None:
    """Fold a scale of shape (C, 1, 1) into a convolution."""
    conv.weight.mul_(scale[..., None])
    conv.bias.mul_(scale.flatten())
