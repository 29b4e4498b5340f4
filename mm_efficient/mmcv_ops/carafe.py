"""CARAFE, content-aware upsampling, as sums over shifted feature maps."""
import torch
from torch import Tensor
from torch.nn.functional import pad

from .common import at_least_float32


def _split(features: Tensor, masks: Tensor, kernel_size: int, group_size: int,
           scale_factor: int) -> tuple[Tensor, Tensor]:
    """Padded features and masks with an axis for each thing.

    Returns:
        tuple: (B, groups, C / groups, H + 2 p, W + 2 p) and
        (B, groups, kernel_size ** 2, H, scale_factor, W, scale_factor).
    """
    around = [kernel_size // 2] * 4
    features = pad(at_least_float32(features), around).unflatten(1, (group_size, -1))
    masks = at_least_float32(masks).unflatten(1, (group_size, -1))
    masks = masks.unflatten(4, (-1, scale_factor)).unflatten(3, (-1, scale_factor))
    return features, masks


def _windows(padded: Tensor, kernel_size: int) -> list[Tensor]:
    """Views of the padded map, (..., H, W), one per position of the kernel."""
    height, width = (size - kernel_size + 1 for size in padded.shape[-2:])
    return [padded[..., i:i + height, j:j + width]
            for i in range(kernel_size) for j in range(kernel_size)]


def carafe_naive_forward(features: Tensor, masks: Tensor, output: Tensor,
                         kernel_size: int, group_size: int, scale_factor: int) -> None:
    """Upsampling by weights of each output pixel, as ``carafe_naive_forward``.

    Args:
        features (Tensor): (B, C, H, W).
        masks (Tensor): Weights of the ``kernel_size ** 2`` pixels around,
            (B, group_size * kernel_size ** 2, H * scale_factor, W * scale_factor).
        output (Tensor): Filled in place, (B, C, H * scale_factor, W * scale_factor).
        kernel_size (int): Width of the neighbourhood, odd.
        group_size (int): Groups of channels with weights of their own.
        scale_factor (int): Upsampling ratio.
    """
    padded, taps = _split(features, masks, kernel_size, group_size, scale_factor)
    sums = padded.new_zeros(
        *padded.shape[:3], *taps.shape[3:])  # (B, groups, C / groups, H, s, W, s)
    for tap, window in enumerate(_windows(padded, kernel_size)):
        sums.addcmul_(taps[:, :, None, tap], window[..., None, :, None])
    output.copy_(sums.view(output.shape))


def carafe_naive_backward(top_grad: Tensor, features: Tensor, masks: Tensor,
                          bottom_grad: Tensor, mask_grad: Tensor, kernel_size: int,
                          group_size: int, scale_factor: int) -> None:
    """Gradients of :func:`carafe_naive_forward`.

    Args:
        top_grad (Tensor): (B, C, H * scale_factor, W * scale_factor).
        bottom_grad (Tensor): Filled in place, like ``features``.
        mask_grad (Tensor): Filled in place, like ``masks``.

    The other arguments are those of the forward pass.
    """
    padded, taps = _split(features, masks, kernel_size, group_size, scale_factor)
    grad = at_least_float32(top_grad).reshape(*padded.shape[:3], *taps.shape[3:])
    grad_padded, grad_taps = torch.zeros_like(padded), torch.empty_like(taps)
    windows = zip(_windows(padded, kernel_size), _windows(grad_padded, kernel_size))
    for tap, (window, grad_window) in enumerate(windows):
        grad_window += (grad * taps[:, :, None, tap]).sum((4, 6))
        grad_taps[:, :, tap] = (grad * window[..., None, :, None]).sum(2)
    middle = _windows(grad_padded, kernel_size)[kernel_size ** 2 // 2]
    bottom_grad.copy_(middle.flatten(1, 2))
    mask_grad.copy_(grad_taps.reshape(mask_grad.shape))


def carafe_forward(features: Tensor, masks: Tensor, rfeatures: Tensor, routput: Tensor,
                   rmasks: Tensor, output: Tensor, kernel_size: int, group_size: int,
                   scale_factor: int) -> None:
    """:func:`carafe_naive_forward` with mmcv's scratch tensors.

    Args:
        rfeatures (Tensor): Takes the features for the backward pass.
        routput (Tensor): Unused.
        rmasks (Tensor): Unused.
    """
    rfeatures.copy_(features)
    carafe_naive_forward(
        features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(top_grad: Tensor, rfeatures: Tensor, masks: Tensor,
                    rtop_grad: Tensor, rbottom_grad_hs: Tensor, rbottom_grad: Tensor,
                    rmask_grad: Tensor, bottom_grad: Tensor, mask_grad: Tensor,
                    kernel_size: int, group_size: int, scale_factor: int) -> None:
    """:func:`carafe_naive_backward` with mmcv's scratch tensors, here unused."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad,
                          kernel_size, group_size, scale_factor)
