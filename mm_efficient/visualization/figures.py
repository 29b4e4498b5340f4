"""Figures: photographs with maps over them, saved without leaving halves behind."""
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FIGURE_SUFFIXES = ('.png', '.jpg', '.pdf', '.svg')
PANEL_INCHES = 3.0  # height of a panel
OPACITY = 0.65  # of a map over a photograph


def grid_figure(rows: int, columns: int, aspect: float) -> tuple[Figure, np.ndarray]:
    """Figure of panels without axes.

    Args:
        rows (int): Panels from top to bottom.
        columns (int): Panels from left to right.
        aspect (float): Width of a panel over its height.

    Returns:
        tuple[Figure, ndarray]: The figure and its axes, (rows, columns).
    """
    figure = Figure(
        figsize=(columns * PANEL_INCHES * aspect, rows * (PANEL_INCHES + 0.35)),
        layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel in panels.flat:
        panel.set_axis_off()
    return figure, panels


def show_map(panel: Axes, photo: np.ndarray, values: np.ndarray,
             extent: Sequence[float], signed: bool = False) -> None:
    """Draw a map over a photograph, every value where it belongs.

    Args:
        panel (Axes): Where to draw.
        photo (ndarray): RGB, (H, W, 3).
        values (ndarray): Map of (h, w).
        extent (Sequence[float]): Height and width in pixels of the photograph that
            the map covers from the top left corner, more or less than H and W.
        signed (bool): Whether negative values have colours of their own; without, or
            if there are none, colours go from the smallest to the largest value.
            Defaults to False.
    """
    height, width = photo.shape[:2]
    grey = photo @ np.array([0.299, 0.587, 0.114])  # the map has the colours
    panel.imshow(grey, cmap='gray', vmin=0, vmax=255)
    most = float(np.abs(values).max())
    limits = dict(cmap='inferno')
    if signed and values.min() < 0:
        limits = dict(cmap='RdBu_r', vmin=-most, vmax=most)
    panel.imshow(values, extent=(-.5, extent[1] - .5, extent[0] - .5, -.5),
                 interpolation='nearest', alpha=OPACITY, **limits)
    panel.set_xlim(-.5, width - .5)
    panel.set_ylim(height - .5, -.5)


def save_figure(figure: Figure, path: str | Path, dpi: int = 100) -> None:
    """Write a figure, completely or not at all.

    Args:
        figure (Figure): What to write.
        path (str | Path): The file; its name says the format.
        dpi (int): Pixels per inch. Defaults to 100.
    """
    path = Path(path)
    draft = path.with_name(f'.{path.stem}.tmp{path.suffix}')
    try:
        figure.savefig(draft, dpi=dpi, facecolor='white')
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
