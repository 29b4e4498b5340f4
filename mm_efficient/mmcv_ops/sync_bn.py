"""The parts of ``MMSyncBN`` between mmcv's own exchanges of statistics.

``torch.nn.SyncBatchNorm`` would count samples where mmcv's default averages the
statistics of the processes, and has no CPU form.
"""
from torch import Tensor

from .common import at_least_float32


def sync_bn_forward_mean(input: Tensor, mean: Tensor) -> None:
    """Mean of (N, C, L) over N and L into ``mean``, (C, )."""
    mean.copy_(at_least_float32(input).mean((0, 2)))


def sync_bn_forward_var(input: Tensor, mean: Tensor, var: Tensor) -> None:
    """Mean square of the distance to ``mean`` into ``var``, both (C, )."""
    centred = at_least_float32(input) - mean[:, None]
    var.copy_(centred.square_().mean((0, 2)))


def sync_bn_forward_output(input: Tensor, mean: Tensor, var: Tensor, weight: Tensor,
                           bias: Tensor, running_mean: Tensor, running_var: Tensor,
                           norm: Tensor, std: Tensor, output: Tensor, eps: float,
                           momentum: Tensor, group_size: int) -> None:
    """Normalise, scale, shift, and update the running statistics.

    Args:
        input (Tensor): (N, C, L).
        mean (Tensor): Mean over all processes, (C, ).
        var (Tensor): Biased variance over all processes, (C, ).
        weight (Tensor): (C, ).
        bias (Tensor): (C, ).
        running_mean (Tensor): Updated in place, (C, ).
        running_var (Tensor): Updated in place with the unbiased variance, (C, ).
        norm (Tensor): The normalised input, filled in place, (N, C, L).
        std (Tensor): Standard deviation, filled in place, (C, ).
        output (Tensor): Filled in place, (N, C, L).
        eps (float): Added to the variance.
        momentum (Tensor): Weight of this batch in the running statistics, a scalar on
            the device.
        group_size (int): Number of processes.
    """
    std.copy_((var + eps).sqrt())
    norm.copy_((at_least_float32(input) - mean[:, None]).div_(std[:, None]))
    output.copy_(norm * weight[:, None] + bias[:, None])
    count = input.size(0) * input.size(2) * group_size
    unbiased = var * count / (count - 1) if count > 1 else var
    running_mean.lerp_(mean, momentum)
    running_var.lerp_(unbiased, momentum)


def sync_bn_backward_param(grad_output: Tensor, norm: Tensor, grad_weight: Tensor,
                           grad_bias: Tensor) -> None:
    """Gradients of weight and bias, (C, ), from those of the output, (N, C, L)."""
    grad = at_least_float32(grad_output)
    grad_weight.copy_((grad * norm).sum((0, 2)))
    grad_bias.copy_(grad.sum((0, 2)))


def sync_bn_backward_data(grad_output: Tensor, weight: Tensor, grad_weight: Tensor,
                          grad_bias: Tensor, norm: Tensor, std: Tensor,
                          grad_input: Tensor) -> None:
    """Gradient of the input, filled in place, (N, C, L).

    ``grad_weight`` and ``grad_bias`` are means over all processes; the other arguments
    are those of the forward pass.
    """
    count = norm.size(0) * norm.size(2)
    shared = (norm * grad_weight[:, None]).add_(grad_bias[:, None]).div_(count)
    grad = at_least_float32(grad_output) - shared
    grad_input.copy_(grad.mul_((weight / std)[:, None]))
