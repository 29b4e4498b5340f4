"""What the backward pass recomputes rather than keeps, because it is cheap.

At detection size a training step is bound by the memory that activations hold. GELU
and batch norm are element-wise, but what comes out of them is as large as what goes in,
and PyTorch keeps both.
"""
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from .base import recomputed
from .layers import PointwiseConv, is_eager, operand_type

MIN_ENTRIES = 2**20  # of a map; keeping smaller ones costs less than recomputing them


def gelu_then(layer: nn.Module, x: Tensor, approximate: str = 'none') -> Tensor:
    """Compute ``layer(gelu(x))`` and keep ``x``, but not its GELU.

    Values are the same to the last bit. Only for large maps in training: in eval mode,
    while a graph is made, or where hooks listen to the layer, it is called as a module.

    Args:
        layer (nn.Module): To gain anything, an ``nn.Linear`` or a
            :class:`~mm_efficient.models.layers.PointwiseConv`.
        x (Tensor): Input of the activation.
        approximate (str): As in ``F.gelu``. Defaults to 'none'.

    Returns:
        Tensor: Output of the layer.
    """
    if not _is_large(layer, x) or not _is_product(layer, x):
        return layer(F.gelu(x, approximate=approximate))
    # Cast here, where autograd sees it, as autocast would
    weight, bias = layer.weight.to(x.dtype), layer.bias
    bias = bias if bias is None else bias.to(x.dtype)
    dilation = layer.fast_dilation(x) if isinstance(layer, PointwiseConv) else 0
    return _AfterGelu.apply(x, weight, bias, approximate, dilation)


def _is_large(module: nn.Module, x: Tensor) -> bool:
    """Whether ``x`` is worth an effort, in training that runs eagerly."""
    return (module.training and torch.is_grad_enabled() and is_eager()
            and not isinstance(x, torch.fx.Proxy) and x.numel() >= MIN_ENTRIES)


def _is_product(layer: Any, x: Tensor) -> bool:
    """Whether a layer is nothing but the linear layer or convolution that it seems."""
    if type(layer) is PointwiseConv:
        usual = layer.fast_dilation(x) > 0
    else:  # how PyTorch computes others depends on whether it needs gradients
        usual = type(layer) is nn.Linear and x.is_contiguous()
    return (usual and x.dtype == operand_type(x, layer.weight)
            and not layer._forward_hooks and not layer._forward_pre_hooks)


class _AfterGelu(Function):
    """Linear layer, or 1x1 convolution, of a GELU that is computed again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None,
                approximate: str, dilation: int) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.approximate, ctx.dilation = approximate, dilation
        hidden = F.gelu(x, approximate=approximate)
        if weight.ndim == 2:
            return F.linear(hidden, weight, bias)
        return F.conv2d(hidden, weight, bias, dilation=dilation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad[:3]
        hidden = F.gelu(x, approximate=ctx.approximate)
        if weight.ndim == 2:
            rows = grad.flatten(0, -2)
            grad_weight = rows.t() @ hidden.flatten(0, -2) if wanted[1] else None
            grad_bias = rows.sum(0) if wanted[2] else None
            grad_hidden = (rows @ weight).view(x.shape)
        else:
            grad_hidden, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
                grad, hidden, weight, [len(weight)], [1, 1], [0, 0],
                [ctx.dilation] * 2, False, [0, 0], 1, wanted)
        if torch.is_grad_enabled():  # for gradients of gradients
            grad_x = torch.ops.aten.gelu_backward(grad_hidden, x,
                                                  approximate=ctx.approximate)
        else:  # in memory that is there
            grad_x = torch.ops.aten.gelu_backward.grad_input(
                grad_hidden, x, approximate=ctx.approximate, grad_input=hidden)
        return grad_x, grad_weight, grad_bias, None, None


class RecomputingStem(nn.Sequential):
    """Convolutions, each followed by a batch norm and an activation.

    In training it keeps what the convolutions return, but not what norms and
    activations, which work in place, make of it: at strides 2 and 4 these maps are the
    largest of all.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H', W')."""
        first, *others = self
        x = first(x)
        for i in range(0, len(others), 3):
            modules = others[i:i + 3]  # norm, activation, next convolution
            if _is_large(self, x):
                x = recomputed(nn.Sequential(*modules), x, random=False)
            else:
                for module in modules:
                    x = module(x)
        return x
