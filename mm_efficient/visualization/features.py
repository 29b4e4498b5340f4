"""Feature pyramids: what a backbone and its neck give for a photograph."""
import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from .figures import grid_figure, show_map


@dataclass
class Level:
    """One level of a pyramid.

    Args:
        name (str): Where it is from, ``'backbone'`` or ``'neck'``, and its place.
        maps (Tensor): (C, h, w).
        stride (int): Pixels of the image per value and side.
    """
    name: str
    maps: Tensor
    stride: int

    @property
    def extent(self) -> tuple[int, int]:
        """Height and width in pixels of what the maps cover."""
        return self.maps.shape[1] * self.stride, self.maps.shape[2] * self.stride

    @property
    def constant(self) -> int:
        """Number of channels that are the same everywhere: they show nothing."""
        deviation = self.maps.flatten(1).std(1, correction=0)
        return int((deviation <= 1e-6 * self.maps.abs().max()).sum())

    def telling(self, number: int) -> list[int]:
        """Channels that vary most over the image, the one that does most first."""
        return self.maps.flatten(1).var(1, correction=0).topk(
            min(number, len(self.maps))).indices.tolist()


@torch.no_grad()
def feature_pyramid(model: nn.Module, x: Tensor) -> list[Level]:
    """Levels of the backbone and, if there is one, of the neck.

    Args:
        model (nn.Module): Classifier, detector or segmentor, in eval mode.
        x (Tensor): One normalised image, (1, 3, H, W).

    Returns:
        list[Level]: On the CPU; what is not a map (a pooled vector) is left out.
    """
    outputs = {'backbone': model.backbone(x)}
    if getattr(model, 'with_neck', False):
        outputs['neck'] = model.neck(outputs['backbone'])
    levels = []
    for part, maps in outputs.items():
        maps = maps if isinstance(maps, (tuple, list)) else [maps]
        for i, level in enumerate(maps):
            if level.ndim == 4:
                # Sizes round up: the longer side tells more, but for the rounding
                ratio = max(x.shape[2] / level.shape[2], x.shape[3] / level.shape[3])
                stride = 2**round(math.log2(ratio))
                levels.append(Level(f'{part} {i + 1}', level[0].cpu(), stride))
    return levels


def draw_features(photo: np.ndarray, levels: list[Level],
                  num_channels: int = 4) -> Figure:
    """Figure of a pyramid: a line per level, of the magnitude and single channels.

    The magnitude is the length of the vector at a position; the mean of channels, which
    is often shown, is the same everywhere behind a layer norm.

    Args:
        photo (ndarray): RGB, (H, W, 3).
        levels (list[Level]): From :func:`feature_pyramid`.
        num_channels (int): Channels to show of each, those that vary most over the
            image. Defaults to 4.

    Returns:
        Figure: Not saved yet.
    """
    figure, panels = grid_figure(len(levels), 2 + num_channels,
                                 photo.shape[1] / photo.shape[0])
    for panel, level in zip(panels, levels):
        channels, rows, columns = level.maps.shape
        panel[0].imshow(photo)
        panel[0].set_title(f'{level.name}: stride {level.stride}\n{channels} maps of '
                           f'{rows} x {columns}', fontsize=10)
        views = [('magnitude', level.maps.norm(dim=0))] + [
            (f'channel {i}', level.maps[i]) for i in level.telling(num_channels)]
        for axes, (title, values) in zip(panel[1:], views):
            show_map(axes, photo, values.float().numpy(), level.extent)
            axes.set_title(f'{title}\n{values.min():.2g} to {values.max():.2g}',
                           fontsize=10)
    return figure
