"""What several operators share."""
import contextlib
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor


def at_least_float32(tensor: Tensor) -> Tensor:
    """float16 and bfloat16 to float32, because the kernels' half paths differ."""
    half = tensor.dtype in (torch.float16, torch.bfloat16)
    return tensor.float() if half else tensor


@contextlib.contextmanager
def warn_if_not_deterministic() -> Iterator[None]:
    """Warn about a nondeterministic CUDA kernel instead of raising an error.

    mmcv's own kernels run with ``randomness=dict(deterministic=True)`` too, and are
    no more deterministic.
    """
    strict = (
        torch.are_deterministic_algorithms_enabled()
        and not torch.is_deterministic_algorithms_warn_only_enabled())
    if strict:
        torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        if strict:
            torch.use_deterministic_algorithms(True)


def gradients(function: Callable[..., Tensor], inputs: Sequence[Tensor],
              grad_output: Tensor) -> tuple[Tensor, ...]:
    """Gradients of a function that is computed once more.

    mmcv's autograd functions save the inputs and ask for the gradients later.

    Args:
        function (Callable): Differentiable, from the inputs to one tensor.
        inputs (Sequence[Tensor]): Inputs of the forward pass, computed with in at
            least float32.
        grad_output (Tensor): Gradient of the output.

    Returns:
        tuple[Tensor]: One gradient per input.
    """
    leaves = [at_least_float32(tensor).detach().requires_grad_() for tensor in inputs]
    with torch.enable_grad():
        output = function(*leaves)
    return torch.autograd.grad(output, leaves, at_least_float32(grad_output))


def weighted_sums(table: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows of a table, without a copy of the rows.

    Args:
        table (Tensor): (K, C).
        rows (Tensor): Which rows to add, int64, (N, S).
        weights (Tensor): Their weights, (N, S).

    Returns:
        Tensor: (N, C). Differentiable with respect to table and weights.
    """
    return torch.nn.functional.embedding_bag(
        rows, table, mode='sum', per_sample_weights=weights)


def bilinear_corners(y: Tensor, x: Tensor, height: int,
                     width: int) -> tuple[Tensor, Tensor]:
    """The four pixels, and their weights, that RoIAlign reads for each sample.

    Samples up to one pixel outside the map take the value of its border, those
    further outside zero.

    Args:
        y (Tensor): Vertical positions in pixels, any shape.
        x (Tensor): Horizontal positions, of the same shape.
        height (int): Height of the map.
        width (int): Width of the map.

    Returns:
        tuple: Index of the pixels in the flattened map, int64, and their weights, both
        (*y.shape, 2, 2). The weights are differentiable.
    """
    inside = (y >= -1) & (y <= height) & (x >= -1) & (x <= width)
    pixels, shares = [], []
    for position, size in ((y, height), (x, width)):
        position = torch.where(inside, position, 0).clamp(0, size - 1)
        low = position.detach().floor()
        share = position - low
        neighbours = torch.stack([low, (low + 1).clamp(max=size - 1)], -1)
        pixels.append(neighbours.long())
        shares.append(torch.stack([1 - share, share], -1))
    index = pixels[0][..., :, None] * width + pixels[1][..., None, :]
    weights = shares[0][..., :, None] * shares[1][..., None, :]
    return index, torch.where(inside[..., None, None], weights, 0)


def sample_steps(pitch: Tensor, sampling_ratio: int) -> tuple[Tensor, Tensor]:
    """Where the bins of each RoI are sampled along one axis.

    With adaptive sampling all bins get as many samples as the largest needs, which has
    to wait for the device; those too many have weight zero.

    Args:
        pitch (Tensor): Size of a bin in pixels, (N, ).
        sampling_ratio (int): Samples per bin; 0 adapts to the RoI.

    Returns:
        tuple: Distances from the begin of the bin, and weights, zero or one, both
        (N, S).
    """
    if sampling_ratio > 0:
        number, most = torch.full_like(pitch, sampling_ratio), sampling_ratio
    else:
        number = pitch.ceil()
        most = max(int(number.max()), 1)
    sample = torch.arange(most, device=pitch.device)
    distance = (sample + 0.5) * (pitch / number.clamp(min=1))[:, None]
    return distance, (sample < number[:, None]).to(pitch)
