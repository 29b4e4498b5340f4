"""Focal loss on logits."""
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..kernels import use_kernel
from .common import at_least_float32


def _signed_logits(input: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logits whose sigmoid is the probability of being right.

    Returns:
        tuple: ``positive`` (N, C), true at the sample's class; ``signed`` (N, C), new,
        float32 or float64, the logit there and minus the logit elsewhere.
    """
    logits = at_least_float32(input)
    classes = torch.arange(logits.size(1), device=target.device)
    positive = target[:, None] == classes  # all false for background
    return positive, torch.where(positive, logits, -logits)


def _scale_(values: Tensor, positive: Tensor, factors: tuple[float, float],
            target: Tensor, weight: Tensor) -> Tensor:
    """Multiply in place by the factors of positives and negatives and class weights."""
    right, wrong = (values.new_full((), factor) for factor in factors)
    values.mul_(torch.where(positive, right, wrong))
    if weight.numel():
        # class `num_classes` is background and has no weight
        weight = torch.cat([weight, weight.new_ones(1)]).to(values)
        values.mul_(weight[target][:, None])
    return values


def sigmoid_focal_loss_forward(input: Tensor, target: Tensor, weight: Tensor,
                               output: Tensor, gamma: float, alpha: float) -> None:
    """Focal loss on logits, as ``mmcv._ext.sigmoid_focal_loss_forward``.

    ``torchvision.ops.sigmoid_focal_loss`` would not do: its gradient is not finite for
    confident logits and gamma < 1.

    Args:
        input (Tensor): Logits, (N, C).
        target (Tensor): Class of each sample, int64, (N, ); C means background.
        weight (Tensor): One weight per class, (C, ), applied to all logits of the
            samples of that class; or empty.
        output (Tensor): The loss, filled in place, (N, C).
        gamma (float): Exponent of the modulating factor.
        alpha (float): Weight of the sample's class; the others get 1 - alpha.
    """
    if use_kernel(input, output) and output.is_contiguous():
        torch.ops.mm_efficient.sigmoid_focal_loss(
            input, target, weight, output, gamma, alpha)
        return
    positive, signed = _signed_logits(input, target)  # p_t = sigmoid(signed)
    # In place: on a GPU these are hundreds of megabytes each
    loss = logsigmoid(signed)
    loss.mul_(signed.neg_().sigmoid_().pow_(gamma))
    output.copy_(_scale_(loss, positive, (-alpha, alpha - 1), target, weight))


def sigmoid_focal_loss_backward(input: Tensor, target: Tensor, weight: Tensor,
                                grad_input: Tensor, gamma: float,
                                alpha: float) -> None:
    """Gradient of the focal loss with respect to the logits.

    Args:
        grad_input (Tensor): Filled in place, (N, C), for an upstream gradient of one;
            mmcv multiplies by the actual one.

    The other arguments are those of the forward pass.
    """
    if use_kernel(input, grad_input) and grad_input.is_contiguous():
        torch.ops.mm_efficient.sigmoid_focal_loss_backward(
            input, target, weight, grad_input, gamma, alpha)
        return
    positive, signed = _signed_logits(input, target)
    slope = logsigmoid(signed).mul_(signed.sigmoid()).mul_(-gamma)
    missing = signed.neg_().sigmoid_()  # 1 - p_t
    slope.add_(missing).mul_(missing.pow_(gamma))
    grad_input.copy_(_scale_(slope, positive, (-alpha, 1 - alpha), target, weight))
