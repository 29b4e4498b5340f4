"""Figures of maps drawn over an image."""
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from ..files import whole_file

FIGURE_SUFFIXES = ('.png', '.jpg', '.pdf', '.svg')
PANEL_INCHES = 3.0  # height of a panel
OPACITY = 0.65  # opacity of a map over the image


def grid_figure(rows: int, columns: int, aspect: float) -> tuple[Figure, np.ndarray]:
    """Make a figure of panels without axes.

    Args:
        rows (int): Number of rows.
        columns (int): Number of columns.
        aspect (float): Width over height of a panel.

    Returns:
        tuple[Figure, ndarray]: The figure and its panels, (rows, columns).
    """
    figure = Figure(
        figsize=(columns * PANEL_INCHES * aspect, rows * (PANEL_INCHES + 0.35)),
        layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    return figure, panels


def draw_row(panels: Sequence[Axes], image: np.ndarray, title: str,
             maps: dict[str, Tensor], extent: tuple[int, int],
             signed: bool = False) -> None:
    """Draw an image and maps over it, with their range of values, in a row of panels.

    Args:
        panels (Sequence[Axes]): One for the image, and at least one for each map.
        image (ndarray): RGB, (H, W, 3).
        title (str): Title of the first panel.
        maps (dict[str, Tensor]): Maps of shape (h, w) by title.
        extent (tuple[int, int]): Height and width in pixels that the maps cover from
            the top left corner of the image, more or less than H and W.
        signed (bool): Whether to draw negative values in blue and positive ones in red.
            Defaults to False.
    """
    panels[0].imshow(image)
    panels[0].set_title(title, fontsize=10)
    for panel, (name, values) in zip(panels[1:], maps.items()):
        low, high = values.min().item(), values.max().item()
        show_map(panel, image, values.float().numpy(), extent, signed)
        panel.set_title(f'{name}\n{low:.2g} to {high:.2g}', fontsize=10)


def show_map(panel: Axes, image: np.ndarray, values: np.ndarray,
             extent: tuple[int, int], signed: bool = False) -> None:
    """Draw a map over the gray image, without interpolation.

    ``Visualizer.draw_featmap`` stretches a map to the size of the image; here every
    value lies on the pixels it belongs to, and zero is white in signed maps.

    Args:
        panel (Axes): Panel to draw in.
        image (ndarray): RGB, (H, W, 3).
        values (ndarray): Map, (h, w).
        extent (tuple[int, int]): See :func:`draw_row`.
        signed (bool): See :func:`draw_row`. Defaults to False.
    """
    height, width = image.shape[:2]
    gray = image @ np.array([0.299, 0.587, 0.114])
    panel.imshow(gray, cmap='gray', vmin=0, vmax=255)
    diverging = signed and values.min() < 0
    limit = float(np.abs(values).max()) if diverging else None
    panel.imshow(values, cmap='RdBu_r' if diverging else 'inferno', alpha=OPACITY,
                 vmin=-limit if limit else None, vmax=limit, interpolation='nearest',
                 extent=(-.5, extent[1] - .5, extent[0] - .5, -.5))
    panel.set_xlim(-.5, width - .5)
    panel.set_ylim(height - .5, -.5)


def save_figure(figure: Figure, path: str | Path, dpi: int = 100) -> None:
    """Write a figure, completely or not at all.

    Args:
        figure (Figure): Figure to write.
        path (str | Path): Output file; its suffix sets the format.
        dpi (int): Pixels per inch. Defaults to 100.
    """
    with whole_file(path) as draft:
        figure.savefig(draft, dpi=dpi, facecolor='white')
