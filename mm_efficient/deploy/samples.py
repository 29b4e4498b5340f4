"""What an exported model is compared on: photographs, and weights that all matter."""
from collections.abc import Callable, Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..datasets.scenes import draw_scene
from ..visualization import read_photo

BATCH = 2
SCENE_SIZE = (224, 288)
CONTRAST = 4
LEAST_VARIANCE = 0.01  # of the mean square


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
        photos = [read_photo(file) for file in files[:BATCH]]
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
              batches: Sequence[Tensor]):
    """Make every part of an untrained model count.

    Models begin with branches that are switched off and with norms that do nothing:
    all outputs would be alike, and every export of them right. Vectors (biases, scales)
    are drawn around their mean, and batch norms get the statistics of the images.

    Args:
        model (nn.Module): Changed in place, eval mode.
        run (Callable): Calls the model.
        batches (Sequence[Tensor]): Batches of images, of all sizes that matter: what is
            random may grow a lot from one to another.
    """
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        if parameter.numel() == max(parameter.shape):
            mean = parameter.mean().round()
            parameter.copy_(mean + 0.1 * torch.randn(parameter.shape,
                                                     generator=generator))
    norms = [module for module in model.modules()
             if isinstance(module, _BatchNorm) and module.track_running_stats]
    for norm in norms:
        norm.reset_running_stats()
        norm.running_var.zero_()
    hooks = [norm.register_forward_pre_hook(_settle) for norm in norms]
    for x in [*(CONTRAST * x for x in batches), *batches]:
        run(model, x)
    for hook in hooks:
        hook.remove()


def _settle(norm: _BatchNorm, inputs: tuple[Tensor]):
    """Let a batch norm give a variance of 1 at most for all it has seen.

    Means over batches would not do: where attention grows with the square of its input,
    what is twice too large in one block has overflowed a few blocks later, and rounding
    grows likewise. Because images of a higher contrast have been seen, the input of
    that attention is less than 1, and its square small beside it.
    """
    x = inputs[0].transpose(0, 1).flatten(1)  # (C, B * H * W)
    if not norm.num_batches_tracked:
        norm.running_mean.copy_(x.mean(1))
        norm.num_batches_tracked.add_(1)
    variance = (x - norm.running_mean[:, None]).square().mean(1)
    # Where all values are alike, as of one pixel, their rounding would count
    variance = torch.maximum(variance, LEAST_VARIANCE * x.square().mean(1))
    torch.maximum(norm.running_var, variance, out=norm.running_var)
