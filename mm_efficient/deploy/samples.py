"""What an exported model is compared on: photographs, and weights that all matter."""
from collections.abc import Callable, Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..datasets.scenes import draw_scene
from ..files import read_image

BATCH = 2
SCENE_SIZE = (224, 288)


def photographs(files: Sequence[Path], size: tuple[int, int]) -> list[Tensor]:
    """Batches of two sizes.

    Args:
        files (Sequence[Path]): Image files; without any, scenes are drawn.
        size (tuple[int, int]): Height and width of the first batch. The second one is
            a single image, lower and wider, whose sides are no multiples of anything.

    Returns:
        list[Tensor]: RGB of 0 to 255, float32: (2, 3, H, W) and (1, 3, H', W').
    """
    other = max(size[0] * 3 // 4 + 3, 35), size[1] * 5 // 4 + 1
    if files:
        photos = [read_image(file) for file in files[:BATCH]]
    else:
        photos = [draw_scene(np.random.default_rng(seed), SCENE_SIZE).image
                  for seed in range(BATCH)]
    photos = (photos * BATCH)[:BATCH]  # of a single photograph two copies
    return [_batch(photos, size), _batch(photos[-1:], other)]


def _batch(photos: Sequence[np.ndarray], size: tuple[int, int]) -> Tensor:
    images = [mmcv.imresize(photo, (size[1], size[0])) for photo in photos]
    batch = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return batch.float().contiguous()


@torch.no_grad()
def randomize(model: nn.Module, run: Callable[[nn.Module, Tensor], object],
              batches: Sequence[Tensor]) -> None:
    """Make every part of an untrained model count.

    Models begin with branches that are switched off and with norms that do nothing:
    all outputs would be alike, and every export of them right. Vectors (biases, scales)
    are drawn around their mean, and batch norms get statistics after which nothing
    grows: attention of ReduceFormer squares its input in every block, which overflows
    after a few.

    Args:
        model (nn.Module): Changed in place, eval mode.
        run (Callable): Calls the model.
        batches (Sequence[Tensor]): Batches of images, of all sizes that matter.
    """
    generator = torch.Generator().manual_seed(0)

    def noise(like):
        return 0.1 * torch.randn(like.shape, generator=generator).to(like)
    for parameter in model.parameters():
        if parameter.numel() == max(parameter.shape, default=1):
            parameter.copy_(parameter.mean().round() + noise(parameter))

    def settle(norm, inputs):
        """Divide by the root mean square of the largest input that was seen."""
        square = inputs[0].square().transpose(0, 1).flatten(1).mean(1)  # (C, )
        norm.running_var.copy_(torch.maximum(norm.running_var, square))
        norm.running_mean.copy_(noise(square) * norm.running_var.sqrt())

    norms = [module for module in model.modules()
             if isinstance(module, _BatchNorm) and module.track_running_stats]
    hooks = [norm.register_forward_pre_hook(settle) for norm in norms]
    for norm in norms:
        norm.running_var.zero_()
    for x in [*batches] * 2:  # what is behind a norm changes with it
        run(model, x)
    for hook in hooks:
        hook.remove()
