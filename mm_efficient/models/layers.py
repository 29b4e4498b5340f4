"""Layers and helpers that several families share."""
import contextlib
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, ParamSpec, TypeVar

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from timm.models import register_notrace_module
from torch import Tensor, nn

P = ParamSpec('P')
T = TypeVar('T')

# Minimum number of pixels in a batch for which oneDNN's 1x1 convolution, which reorders
# the weight in every call, beats a matmul
ONEDNN_MIN_PIXELS = 128
# PyTorch 2.1 and 2.2 have it at another place
is_compiling: Callable[[], bool] = getattr(
    torch.compiler, 'is_compiling', None) or torch._utils.is_compiling

BEFORE_PYTORCH_2_4 = torch.__version__ < '2.4'

# torch.fx knows neither sizes nor types: modules that depend on them are leaves of
# timm's tracer
register_notrace_module(DropPath)


def _is_autocast_enabled(device: str) -> bool:
    if not BEFORE_PYTORCH_2_4:
        return torch.is_autocast_enabled(device)
    return (torch.is_autocast_cpu_enabled() if device == 'cpu'
            else torch.is_autocast_enabled())


def autocast_disabled(x: Tensor) -> AbstractContextManager:
    """Return a context without autocast on the device of ``x``.

    Args:
        x (Tensor): Any tensor of the computation.

    Returns:
        AbstractContextManager: A null context if autocast is off already, because an
        ExportedProgram that contains an autocast context cannot be saved.
    """
    if x.device.type == 'meta' or not _is_autocast_enabled(x.device.type):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def operand_type(x: Tensor, weight: Tensor) -> torch.dtype:
    """Type in which a convolution or linear layer computes.

    Args:
        x (Tensor): Input, whose device decides.
        weight (Tensor): Weight.

    Returns:
        torch.dtype: That of autocast, or else of the weight.
    """
    device = x.device.type
    if device == 'meta' or not _is_autocast_enabled(device):
        return weight.dtype
    if not BEFORE_PYTORCH_2_4:
        return torch.get_autocast_dtype(device)
    return (torch.get_autocast_cpu_dtype() if device == 'cpu'
            else torch.get_autocast_gpu_dtype())


def at_least_float32(x: Tensor) -> Tensor:
    """Cast ``x`` to float32 if it is in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def contiguous(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast ``x`` and lay it out, in a single copy if any."""
    x = x.to(dtype, memory_format=torch.contiguous_format)
    return x.contiguous()  # where the type was right, strides are still the old ones


def contiguous_float32(x: Tensor) -> Tensor:
    """Lay out ``x``, in float32 if it is in half precision."""
    return contiguous(x, torch.promote_types(x.dtype, torch.float32))


def _cast(value: Any) -> Any:
    return at_least_float32(value) if isinstance(value, Tensor) else value


def in_float32(operator: Callable[P, T]) -> Callable[P, T]:
    """Decorator of an operator that half precision would spoil.

    Autocast is off inside, and inputs in half precision are cast to float32.

    Args:
        operator (Callable): Its first argument is a tensor.

    Returns:
        Callable: The operator, in float32 or float64.
    """
    @functools.wraps(operator)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        positional: Any = [_cast(value) for value in args]
        named: Any = {name: _cast(value) for name, value in kwargs.items()}
        with autocast_disabled([*positional, *named.values()][0]):
            return operator(*positional, **named)
    return run


def backward_without_autocast(backward: Callable[P, T]) -> Callable[P, T]:
    """Decorator of the backward pass of an autograd function.

    Autocast is off inside, as it was in the forward pass, also where
    ``loss.backward()`` is called under autocast.

    Args:
        backward (Callable): Takes the context and a gradient.

    Returns:
        Callable: The backward pass, in the types of its tensors.
    """
    @functools.wraps(backward)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        grad: Any = args[1]
        with autocast_disabled(grad):
            return backward(*args, **kwargs)
    return run


def eager_on_cpu(x: Tensor) -> bool:
    """Whether ``x`` runs eagerly on a CPU, where layouts and kernels are chosen.

    Traced graphs leave these choices to the compiler.

    Args:
        x (Tensor): Any tensor of the computation.

    Returns:
        bool: False on other devices and while compiling or exporting.
    """
    return x.device.type == 'cpu' and is_eager()


def is_eager() -> bool:
    """Whether nothing is being compiled or exported, so that sizes are numbers."""
    return not (is_compiling() or torch.jit.is_tracing())


def add_scaled(x: Tensor, y: Tensor, alpha: float) -> Tensor:
    """``x + alpha * y``, in one launch; Core ML's converter ignores ``alpha``."""
    return torch.add(x, y, alpha=alpha) if is_eager() else x + alpha * y


@register_notrace_module
class LayerNorm(nn.LayerNorm):
    """Layer norm whose output has the type of its input, also under autocast.

    Statistics are computed in float32. PyTorch's norm returns float32 under autocast,
    which doubles the bytes of everything that adds to it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        with autocast_disabled(x):
            return F.layer_norm(x, self.normalized_shape, self.weight.to(x.dtype),
                                self.bias.to(x.dtype), self.eps)


@register_notrace_module
class ChannelsLastStem(nn.Sequential):
    """First modules of a backbone; they set the memory layout of all later ones.

    On CPUs convolutions are faster with channels last. Once the image has that
    layout, all later modules keep it. On other devices the caller chooses the layout.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H', W')."""
        if eager_on_cpu(x):
            x = x.contiguous(memory_format=torch.channels_last)
        return super().forward(x)


@register_notrace_module
class PointwiseConv(nn.Conv2d):
    """1x1 convolution that is fast on a CPU and keeps the memory layout.

    With one thread PyTorch computes it as a matmul and gives up channels last. A
    dilation, which does not affect a 1x1 kernel, makes it choose oneDNN instead:
    about twice as fast for channels-last maps of 128 pixels or more.

    Args:
        in_dims (int): Input channels.
        out_dims (int): Output channels.
        bias (bool): Whether to add a bias. Defaults to True.
    """

    def __init__(self, in_dims: int, out_dims: int, bias: bool = True):
        super().__init__(in_dims, out_dims, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H, W)."""
        if dilation := self.fast_dilation(x):
            return F.conv2d(x, self.weight, self.bias, dilation=dilation)
        x = x.permute(0, 2, 3, 1)  # a view of a channels-last map
        return F.linear(x, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)

    def fast_dilation(self, x: Tensor) -> int:
        """Dilation with which ``F.conv2d`` is fastest, 0 if a matmul is faster."""
        if not eager_on_cpu(x) or not torch.backends.mkldnn.is_available():
            return 1
        many = x.dtype == torch.float32 and x[:, 0].numel() >= ONEDNN_MIN_PIXELS
        return 2 if many else 0
