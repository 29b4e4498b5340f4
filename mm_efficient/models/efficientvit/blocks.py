"""Convolutional blocks that LowFormer and ReduceFormer share.

Both families are built on the design of EfficientViT
(https://arxiv.org/abs/2205.14756): hard-swish, batch norms, fused or inverted
blocks between the attention modules.
"""
from collections import OrderedDict
from collections.abc import Iterable

from mmcv.cnn.bricks import DropPath
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from ..base import run_blocks
from ..layers import PointwiseConv


def conv_norm_act(in_dims: int, out_dims: int, kernel_size: int, stride: int = 1,
                  groups: int = 1, bias: bool | None = None, norm: bool = True,
                  act: bool = True) -> nn.Sequential:
    """Build a convolution with padding k // 2, batch norm and hard-swish.

    Args:
        in_dims (int): Channels of the input.
        out_dims (int): Channels of the output.
        kernel_size (int): Kernel size k.
        stride (int): Stride; must be 1 if k = 1. Defaults to 1.
        groups (int): Groups of channels; must be 1 if k = 1. Defaults to 1.
        bias (bool, optional): Whether the convolution has a bias. Defaults to None:
            only without a norm.
        norm (bool): Whether there is a batch norm. Defaults to True.
        act (bool): Whether there is an activation. Defaults to True.

    Returns:
        nn.Sequential: (B, in_dims, H, W) -> (B, out_dims, ceil(H / stride),
        ceil(W / stride)).
    """
    bias = not norm if bias is None else bias
    layers: list[nn.Module] = [
        PointwiseConv(in_dims, out_dims, bias) if kernel_size == 1 else nn.Conv2d(
            in_dims, out_dims, kernel_size, stride, kernel_size // 2, groups=groups,
            bias=bias)
    ]
    if norm:
        layers.append(nn.BatchNorm2d(out_dims))
    if act:
        layers.append(nn.Hardswish(inplace=True))
    return nn.Sequential(*layers)


def fused_block(in_dims: int, out_dims: int, stride: int = 1, ratio: int = 4,
                bias: bool = False) -> nn.Sequential:
    """Build an expanding 3x3 convolution and a projecting 1x1 convolution.

    Args:
        in_dims (int): Channels of the input.
        out_dims (int): Channels of the output.
        stride (int): Stride of the first convolution. Defaults to 1.
        ratio (int): Expansion, hidden channels over ``in_dims``. Defaults to 4.
        bias (bool): Give the first convolution a bias in addition to its norm.
            Defaults to False.

    Returns:
        nn.Sequential: (B, in_dims, H, W) -> (B, out_dims, ceil(H / stride),
        ceil(W / stride)).
    """
    hidden_dims = ratio * in_dims
    return nn.Sequential(OrderedDict(
        spatial=conv_norm_act(in_dims, hidden_dims, 3, stride, bias=bias),
        project=conv_norm_act(hidden_dims, out_dims, 1, act=False)))


def inverted_block(in_dims: int, out_dims: int, stride: int = 1,
                   hidden_norms: bool = False) -> nn.Sequential:
    """Build an inverted bottleneck: 1x1 to four times the width, 3x3 depthwise, 1x1.

    Args:
        in_dims (int): Channels of the input.
        out_dims (int): Channels of the output.
        stride (int): Stride of the depthwise convolution. Defaults to 1.
        hidden_norms (bool): Give the first two convolutions a batch norm
            instead of a bias. Defaults to False.

    Returns:
        nn.Sequential: (B, in_dims, H, W) -> (B, out_dims, ceil(H / stride),
        ceil(W / stride)).
    """
    hidden_dims = 4 * in_dims
    return nn.Sequential(OrderedDict(
        expand=conv_norm_act(in_dims, hidden_dims, 1, norm=hidden_norms),
        depthwise=conv_norm_act(hidden_dims, hidden_dims, 3, stride,
                                groups=hidden_dims, norm=hidden_norms),
        project=conv_norm_act(hidden_dims, out_dims, 1, act=False)))


class Residual(nn.Module):
    """Shortcut around a branch.

    Args:
        body (nn.Module): The branch, which keeps the shape.
        drop_path_rate (float): Stochastic-depth rate. Defaults to 0.
    """

    def __init__(self, body: nn.Module, drop_path_rate: float = 0.):
        super().__init__()
        self.body = body
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return x + self.drop_path(self.body(x))


class ConvStage(nn.Module):
    """A block that halves the resolution, followed by blocks that keep it.

    Args:
        downsample (nn.Module): First block, of stride 2.
        blocks (Iterable[nn.Module]): The other blocks, possibly none.
        with_cp (bool): Recompute blocks in the backward pass.
    """

    def __init__(self, downsample: nn.Module, blocks: Iterable[nn.Module],
                 with_cp: bool):
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = with_cp

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, ceil(H / 2), ceil(W / 2))."""
        return run_blocks([self.downsample, *self.blocks], x, self.with_cp)


def init_from_scratch(model: nn.Module) -> None:
    """Initialise a model in place, as published for both families.

    Convolutions get truncated normal weights with standard deviation 0.02 and zero
    biases. Convolutional residual branches are zero-initialised through the scale
    of their last norm; attention and MLP are not.

    Args:
        model (nn.Module): Backbone.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            trunc_normal_(module.weight, std=0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for module in model.modules():
        if isinstance(module, Residual) and hasattr(module.body, 'project'):
            nn.init.zeros_(module.body.get_parameter('project.1.weight'))
