"""What several families share."""
import contextlib
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Fewest pixels of a batch for which oneDNN's 1x1 convolution, which rearranges the
# weight in every call, is faster than a matrix product.
ONEDNN_MIN_PIXELS = 128


def autocast_disabled(x: Tensor) -> AbstractContextManager:
    """Context in which nothing is cast to half precision on ``x``'s device.

    Args:
        x (Tensor): Any tensor of the computation.

    Returns:
        AbstractContextManager: Disables autocast; does nothing where there is none,
        because programs of `torch.export` with such a context cannot be saved.
    """
    try:
        enabled = x.device.type != 'meta' and torch.is_autocast_enabled(x.device.type)
    except TypeError:  # torch before 2.4 does not tell by device
        enabled = True
    if not enabled:
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 if it is in half precision, else unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def eager_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` is computed on a CPU now, not traced for later.

    Choices of layout and of kernels are made here and left out of graphs.

    Args:
        x (Tensor): Any tensor of the computation.

    Returns:
        bool: False on other devices and while compiling or exporting.
    """
    tracing = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return x.device.type == 'cpu' and not tracing


class PointwiseConv(nn.Conv2d):
    """1x1 convolution that is fast on a CPU and keeps the layout of the map.

    For one thread PyTorch computes it by a matrix product and leaves channels
    last. A dilation, which has no effect on one pixel, leads to oneDNN instead,
    measured about twice as fast for channels last maps of 128 pixels or more.

    Args:
        in_dims (int): Input channels.
        out_dims (int): Output channels.
        bias (bool): Whether to add a bias. Defaults to True.
    """

    def __init__(self, in_dims: int, out_dims: int, bias: bool = True):
        super().__init__(in_dims, out_dims, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        if not eager_on_cpu(x) or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        if x.dtype == torch.float32 and x[:, 0].numel() >= ONEDNN_MIN_PIXELS:
            return F.conv2d(x, self.weight, self.bias, dilation=2)
        x = x.permute(0, 2, 3, 1)  # a view, in the order of a channels last map
        return F.linear(x, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)
