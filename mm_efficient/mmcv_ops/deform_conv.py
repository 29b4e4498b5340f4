"""Deformable convolution, versions 1 and 2, by torchvision's ``deform_conv2d``.

Offsets have the same layout there: y and x of each kernel position in turn. The
number of samples per call, ``im2col_step``, changes no result and is ignored.
"""
import torch
from torch import Tensor

from .common import at_least_float32, warn_if_not_deterministic

OUTSIDE = -1e4  # pixels, also of float16
# Vertical and horizontal stride, padding and dilation; groups, deformable groups
Geometry = tuple[int, int, int, int, int, int, int, int]


def _inputs(input: Tensor, weight: Tensor, offset: Tensor, mask: Tensor | None = None,
            bias: Tensor | None = None) -> list[Tensor]:
    """The five tensors that torchvision's operator wants, in at least float32."""
    import torchvision  # noqa: F401  registers torch.ops.torchvision
    if mask is None:
        mask = input.new_zeros(len(input), 1)  # not read
    if bias is None:
        bias = input.new_zeros(len(weight))
    # As in mmcv nothing is read at NaN: torchvision would read outside the memory
    offset = offset.nan_to_num(nan=OUTSIDE, posinf=-OUTSIDE, neginf=OUTSIDE)
    return [at_least_float32(x) for x in (input, weight, offset, mask, bias)]


def _backward(grad_output: Tensor, inputs: list[Tensor], geometry: Geometry,
              use_mask: bool) -> tuple[Tensor, ...]:
    """Gradients of input, weight, offset, mask and bias."""
    with warn_if_not_deterministic():
        return torch.ops.torchvision._deform_conv2d_backward(
            at_least_float32(grad_output), *inputs, *geometry, use_mask)


def deform_conv_forward(input: Tensor, weight: Tensor, offset: Tensor, output: Tensor,
                        columns: Tensor, ones: Tensor, kW: int, kH: int, dW: int,
                        dH: int, padW: int, padH: int, dilationW: int, dilationH: int,
                        group: int, deformable_group: int, im2col_step: int) -> None:
    """Deformable convolution, as ``mmcv._ext.deform_conv_forward``.

    Args:
        input (Tensor): (B, C_in, H, W).
        weight (Tensor): (C_out, C_in / group, kH, kW).
        offset (Tensor): y and x in pixels for each kernel position of each
            deformable group, (B, 2 * deformable_group * kH * kW, H_out, W_out).
        output (Tensor): Filled in place, (B, C_out, H_out, W_out).
        columns (Tensor): Unused.
        ones (Tensor): Unused.
        kW (int): Width of the kernel.
        kH (int): Height of the kernel.
        dW (int): Horizontal stride.
        dH (int): Vertical stride.
        padW (int): Horizontal padding.
        padH (int): Vertical padding.
        dilationW (int): Horizontal dilation.
        dilationH (int): Vertical dilation.
        group (int): Groups of the weight.
        deformable_group (int): Groups of channels that share their offsets.
        im2col_step (int): Ignored.
    """
    geometry = dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
    output.copy_(torch.ops.torchvision.deform_conv2d(
        *_inputs(input, weight, offset), *geometry, False))


def deform_conv_backward_input(input: Tensor, offset: Tensor, gradOutput: Tensor,
                               gradInput: Tensor, gradOffset: Tensor, weight: Tensor,
                               columns: Tensor, kW: int, kH: int, dW: int, dH: int,
                               padW: int, padH: int, dilationW: int, dilationH: int,
                               group: int, deformable_group: int,
                               im2col_step: int) -> None:
    """Gradients of :func:`deform_conv_forward` for the input and the offset.

    Args:
        gradOutput (Tensor): (B, C_out, H_out, W_out).
        gradInput (Tensor): Filled in place, like ``input``.
        gradOffset (Tensor): Filled in place, like ``offset``.
        columns (Tensor): Takes the gradient of the weight. mmcv hands it to
            :func:`deform_conv_backward_parameters`, which need not compute it again.

    The other arguments are those of the forward pass.
    """
    geometry = dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
    grads = _backward(gradOutput, _inputs(input, weight, offset), geometry, False)
    gradInput.copy_(grads[0])
    columns.resize_(weight.shape).copy_(grads[1])
    gradOffset.copy_(grads[2])


def deform_conv_backward_parameters(input: Tensor, offset: Tensor, gradOutput: Tensor,
                                    gradWeight: Tensor, columns: Tensor, ones: Tensor,
                                    kW: int, kH: int, dW: int, dH: int, padW: int,
                                    padH: int, dilationW: int, dilationH: int,
                                    group: int, deformable_group: int, scale: float,
                                    im2col_step: int) -> None:
    """Gradient of :func:`deform_conv_forward` for the weight.

    Args:
        gradOutput (Tensor): (B, C_out, H_out, W_out).
        gradWeight (Tensor): Filled in place, like the weight.
        columns (Tensor): The gradient, if :func:`deform_conv_backward_input` ran
            before; else empty.
        scale (float): Factor of the gradient; mmcv always passes 1.

    The other arguments are those of the forward pass.
    """
    if not columns.numel():
        geometry = dH, dW, padH, padW, dilationH, dilationW, group, deformable_group
        inputs = _inputs(input, gradWeight, offset)  # its own weight does not matter
        columns = _backward(gradOutput, inputs, geometry, False)[1]
    gradWeight.copy_(columns * scale)


def _leading_part(maps: Tensor, size: torch.Size) -> Tensor:
    """What mmcv's kernel reads of offsets or masks that are not of the output's size.

    It does not check the size, and takes the numbers of a sample in the order of memory
    as maps of the output's size. DyHead gives it larger maps for the next higher level,
    and models are trained that way.

    Args:
        maps (Tensor): (B, C, at least H, at least W).
        size (torch.Size): H and W of the output.

    Returns:
        Tensor: (B, C, H, W).
    """
    if maps.shape[2:] == size:
        return maps
    channels = maps.size(1)
    return maps.flatten(1)[:, :channels * size.numel()].unflatten(1, (channels, *size))


def _fill_leading_part(maps: Tensor, part: Tensor) -> None:
    """Gradient of :func:`_leading_part`."""
    if maps.shape != part.shape:
        rest = maps[0].numel() - part[0].numel()
        part = torch.nn.functional.pad(part.flatten(1), (0, rest)).view(maps.shape)
    maps.copy_(part)


def modulated_deform_conv_forward(input: Tensor, weight: Tensor, bias: Tensor,
                                  ones: Tensor, offset: Tensor, mask: Tensor,
                                  output: Tensor, columns: Tensor, kernel_h: int,
                                  kernel_w: int, stride_h: int, stride_w: int,
                                  pad_h: int, pad_w: int, dilation_h: int,
                                  dilation_w: int, group: int, deformable_group: int,
                                  with_bias: bool) -> None:
    """Version 2, as ``mmcv._ext.modulated_deform_conv_forward``.

    Args:
        bias (Tensor): (C_out, ), or empty.
        mask (Tensor): Factor of each sample,
            (B, deformable_group * kernel_h * kernel_w, H_out, W_out). Mask and offset
            may be larger, see :func:`_leading_part`.
        with_bias (bool): Whether there is a bias.

    The other arguments are those of :func:`deform_conv_forward`, by other names.
    """
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group,
                deformable_group)
    size = output.shape[2:]
    inputs = _inputs(input, weight, _leading_part(offset, size),
                     _leading_part(mask, size), bias if with_bias else None)
    output.copy_(torch.ops.torchvision.deform_conv2d(*inputs, *geometry, True))


def modulated_deform_conv_backward(input: Tensor, weight: Tensor, bias: Tensor,
                                   ones: Tensor, offset: Tensor, mask: Tensor,
                                   columns: Tensor, grad_input: Tensor,
                                   grad_weight: Tensor, grad_bias: Tensor,
                                   grad_offset: Tensor, grad_mask: Tensor,
                                   grad_output: Tensor, kernel_h: int, kernel_w: int,
                                   stride_h: int, stride_w: int, pad_h: int,
                                   pad_w: int, dilation_h: int, dilation_w: int,
                                   group: int, deformable_group: int,
                                   with_bias: bool) -> None:
    """Gradients of :func:`modulated_deform_conv_forward`.

    Args:
        grad_input, grad_weight, grad_bias, grad_offset, grad_mask (Tensor): Filled in
            place; ``grad_bias`` only if there is a bias.
        grad_output (Tensor): (B, C_out, H_out, W_out).

    The other arguments are those of the forward pass.
    """
    geometry = (stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, group,
                deformable_group)
    size = grad_output.shape[2:]
    inputs = _inputs(input, weight, _leading_part(offset, size),
                     _leading_part(mask, size), bias if with_bias else None)
    grads = _backward(grad_output, inputs, geometry, True)
    grad_input.copy_(grads[0])
    grad_weight.copy_(grads[1])
    _fill_leading_part(grad_offset, grads[2])
    _fill_leading_part(grad_mask, grads[3])
    if with_bias:
        grad_bias.copy_(grads[4])
