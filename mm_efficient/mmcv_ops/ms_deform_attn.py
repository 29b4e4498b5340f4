"""Multi-scale deformable attention of Deformable DETR.

On the CPU mmcv calls a Python form of its own, which reads the sizes of the feature
maps on the host. This one does not wait for the device, and keeps no copy of the
sampled values.
"""
from functools import partial

import torch
from torch import Tensor

from .common import at_least_float32, gradients, weighted_sums


def _attend(value: Tensor, locations: Tensor, weights: Tensor, shapes: Tensor,
            starts: Tensor) -> Tensor:
    """See :func:`ms_deform_attn_forward`."""
    batch, keys, heads, channels = value.shape
    queries = locations.size(1)
    size = shapes.flip(1)[:, None]  # width and height, (L, 1, 2)
    position = locations * size - 0.5  # pixels, (B, Q, heads, L, P, 2)
    low = position.detach().floor()
    share = position - low
    # (B, Q, heads, L, P, 2 neighbours, x and y); zero outside the map, also for NaN
    corner = torch.stack([low, low + 1], -2)
    inside = (corner >= 0) & (corner < size[:, None])
    corner = torch.where(inside, corner, 0).long()
    share = torch.where(inside, torch.stack([1 - share, share], -2), 0)

    x, y = corner.unbind(-1)
    key = y[..., :, None] * size[..., 0, None, None] + x[..., None, :]
    key = key + starts[:, None, None, None]
    first = torch.arange(batch, device=value.device).view(-1, 1, 1, 1, 1, 1, 1) * keys
    head = torch.arange(heads, device=value.device).view(-1, 1, 1, 1, 1)
    rows = (first + key) * heads + head
    share = share[..., 1][..., :, None] * share[..., 0][..., None, :]
    share = share * weights[..., None, None]
    sums = weighted_sums(value.reshape(-1, channels), rows.flatten(3).flatten(0, 2),
                         share.flatten(3).flatten(0, 2))
    return sums.view(batch, queries, heads * channels)


def ms_deform_attn_forward(value: Tensor, value_spatial_shapes: Tensor,
                           value_level_start_index: Tensor,
                           sampling_locations: Tensor, attention_weights: Tensor,
                           im2col_step: int) -> Tensor:
    """Weighted sums of values at bilinear samples of several feature maps.

    Args:
        value (Tensor): The maps one after the other, (B, K, heads, C).
        value_spatial_shapes (Tensor): Height and width of each map, (L, 2).
        value_level_start_index (Tensor): Where each map starts in K, (L, ).
        sampling_locations (Tensor): x and y of P samples per query, head and map,
            from 0 to 1, (B, Q, heads, L, P, 2). Zero is read outside.
        attention_weights (Tensor): (B, Q, heads, L, P).
        im2col_step (int): Ignored.

    Returns:
        Tensor: (B, Q, heads * C), of the type of ``value``.
    """
    output = _attend(
        at_least_float32(value), at_least_float32(sampling_locations),
        at_least_float32(attention_weights), value_spatial_shapes,
        value_level_start_index)
    return output.to(value.dtype)


def ms_deform_attn_backward(value: Tensor, value_spatial_shapes: Tensor,
                            value_level_start_index: Tensor,
                            sampling_locations: Tensor, attention_weights: Tensor,
                            grad_output: Tensor, grad_value: Tensor,
                            grad_sampling_loc: Tensor, grad_attn_weight: Tensor,
                            im2col_step: int) -> None:
    """Gradients of :func:`ms_deform_attn_forward`.

    Args:
        grad_output (Tensor): (B, Q, heads * C).
        grad_value, grad_sampling_loc, grad_attn_weight (Tensor): Filled in place, like
            the inputs.

    The other arguments are those of the forward pass.
    """
    attend = partial(
        _attend, shapes=value_spatial_shapes, starts=value_level_start_index)
    grads = gradients(attend, (value, sampling_locations, attention_weights),
                      grad_output)
    for target, grad in zip((grad_value, grad_sampling_loc, grad_attn_weight), grads):
        target.copy_(grad)
