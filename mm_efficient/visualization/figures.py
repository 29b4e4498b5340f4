"""Figures of maps drawn over an image, and the option of a tool that names one."""
import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from rich.console import Console
from torch import Tensor

from ..files import check_output, whole_file

FIGURE_SUFFIXES = ('.png', '.jpg', '.pdf', '.svg')
PANEL_INCHES = 3.0  # height of a panel
OPACITY = 0.65  # opacity of a map over the image


class MapRow(NamedTuple):
    """Maps in one row of a figure, after the image.

    Args:
        title (str): Title of the image.
        maps (dict[str, Tensor]): Maps of shape (h, w) by title.
        extent (tuple[int, int]): Height and width in pixels that the maps cover from
            the top left corner of the image, more or less than the image has.
        signed (bool): Whether to draw negative values in blue and positive ones in red.
            Defaults to False.
        frame (tuple[int, int, int], optional): x, y and side in pixels of a square to
            frame in the image. Defaults to None.
    """
    title: str
    maps: dict[str, Tensor]
    extent: tuple[int, int]
    signed: bool = False
    frame: tuple[int, int, int] | None = None


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
    return figure, figure.subplots(
        rows, columns, squeeze=False,
        subplot_kw=dict(frame_on=False, xticks=[], yticks=[]))


def draw_maps(image: np.ndarray, rows: Sequence[MapRow]) -> Figure:
    """Draw rows of maps over an image, each map with its range of values.

    ``Visualizer.draw_featmap`` stretches a map to the size of the image; here every
    value lies on the pixels it belongs to, and zero is white in signed maps.

    Args:
        image (ndarray): RGB, (H, W, 3).
        rows (Sequence[MapRow]): At least one.

    Returns:
        Figure: Figure to save with :func:`save_figure`.
    """
    figure, panels = grid_figure(len(rows), 1 + max(len(row.maps) for row in rows),
                                 image.shape[1] / image.shape[0])
    for (first, *others), row in zip(panels, rows):
        first.imshow(image)
        first.set_title(row.title, fontsize=10)
        if row.frame:
            x, y, side = row.frame
            first.add_patch(Rectangle((x, y), side, side, fill=False, edgecolor='lime',
                                      linewidth=1.5))
        for panel, (title, values) in zip(others, row.maps.items()):
            _draw_map(panel, image, values.float().cpu().numpy(), row)
            panel.set_title(f'{title}\n{values.min():.2g} to {values.max():.2g}',
                            fontsize=10)
    return figure


def _draw_map(panel: Axes, image: np.ndarray, values: np.ndarray, row: MapRow) -> None:
    """Draw a map (h, w) over the gray image, without interpolation."""
    height, width = image.shape[:2]
    gray = image @ np.array([0.299, 0.587, 0.114])
    panel.imshow(gray, cmap='gray', vmin=0, vmax=255)
    diverging = row.signed and values.min() < 0
    limit = float(np.abs(values).max()) if diverging else None
    panel.imshow(values, cmap='RdBu_r' if diverging else 'inferno', alpha=OPACITY,
                 vmin=-limit if limit else None, vmax=limit, interpolation='nearest',
                 extent=(-.5, row.extent[1] - .5, row.extent[0] - .5, -.5))
    panel.set(xlim=(-.5, width - .5), ylim=(height - .5, -.5))


def add_out(parser: argparse.ArgumentParser, default: str) -> None:
    """Add the option ``--out`` for the figure that a tool writes.

    Args:
        parser (ArgumentParser): Changed in place.
        default (str): Default file name.
    """
    parser.add_argument('--out', default=default, metavar='FILE',
                        help=f'{", ".join(FIGURE_SUFFIXES)} (default: {default})')


def check_figure(path: str | Path, inputs: Sequence[str | Path | None] = ()) -> None:
    """Check, before any work, that a figure can be written; see ``check_output``."""
    check_output(path, FIGURE_SUFFIXES, inputs)


def save_figure(figure: Figure, path: str | Path, dpi: int = 100) -> None:
    """Write a figure, completely or not at all, and show that this takes time.

    Args:
        figure (Figure): Figure to write.
        path (str | Path): Output file; its suffix sets the format.
        dpi (int): Pixels per inch. Defaults to 100.
    """
    with whole_file(path) as draft, Console(stderr=True).status(f'drawing {path}'):
        figure.savefig(draft, dpi=dpi, facecolor='white')
