"""Inputs for verifying a model: images, and weights that all affect the output."""
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..datasets.scenes import draw_scene
from ..files import read_image

BATCH_SIZE = 2
SCENE_SHAPE = (224, 288)


def sample_images(files: Sequence[Path], shape: tuple[int, int]) -> list[Tensor]:
    """Read or generate two batches of images of different shapes.

    Args:
        files (Sequence[Path]): Image files. If empty, synthetic scenes are generated.
        shape (tuple[int, int]): Height and width of the first batch. The second batch
            is a single image, lower and wider, with odd sides.

    Returns:
        list[Tensor]: RGB, 0 to 255, float32, (2, 3, H, W) and (1, 3, H', W').
    """
    if files:
        images = [read_image(file) for file in files[:BATCH_SIZE]]
    else:
        images = [draw_scene(np.random.default_rng(seed), SCENE_SHAPE).image
                  for seed in range(BATCH_SIZE)]
    images = (images * BATCH_SIZE)[:BATCH_SIZE]  # repeat a single image
    other_shape = max(shape[0] * 3 // 4 + 3, 35), shape[1] * 5 // 4 + 1
    return [_to_batch(images, shape), _to_batch(images[-1:], other_shape)]


def _to_batch(images: Sequence[np.ndarray], shape: tuple[int, int]) -> Tensor:
    resized = [mmcv.imresize(image, shape[::-1]) for image in images]
    batch = torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2)
    return batch.float().contiguous()


@torch.no_grad()
def randomize(model: nn.Module, run: Callable[[nn.Module, Tensor], object],
              batches: Sequence[Tensor]) -> None:
    """Randomise an untrained model so that every parameter affects the output.

    Untrained models have branches scaled by zero and norms that do nothing, so any
    export would look right. This adds noise to all vectors (biases, scales) and sets
    the statistics of batch norms such that activations neither vanish nor grow:
    ReduceFormer's attention squares its input in every block, which soon overflows.

    Args:
        model (nn.Module): Changed in place; in eval mode.
        run (Callable): Calls the model with a batch.
        batches (Sequence[Tensor]): Batches of images of all shapes to be used.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(like: Tensor) -> Tensor:
        values = torch.randn(like.shape, generator=generator, device='cpu')
        return 0.1 * values.to(like)

    def update_statistics(norm: Any, inputs: tuple[Tensor, ...]) -> None:
        """Divide by the RMS of the largest input so far."""
        square = inputs[0].square().transpose(0, 1).flatten(1).mean(1)  # (C, )
        norm.running_var.copy_(torch.maximum(norm.running_var, square))
        norm.running_mean.copy_(noise(square) * norm.running_var.sqrt())

    for parameter in model.parameters():
        if parameter.numel() == max(parameter.shape, default=1):
            parameter.copy_(parameter.mean().round() + noise(parameter))
    hooks = []
    for norm in model.modules():
        if isinstance(norm, _BatchNorm) and norm.running_var is not None:
            norm.running_var.zero_()
            hooks.append(norm.register_forward_pre_hook(update_statistics))
    for batch in [*batches] * 2:  # again, as the first pass changes later inputs
        run(model, batch)
    for hook in hooks:
        hook.remove()
