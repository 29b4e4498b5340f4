"""Plot reported accuracy against measured latency, with the name of each model."""
import itertools
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from matplotlib.transforms import Bbox

from ..weights import FAMILIES

OTHERS = 'other models'
INCHES = (9., 6.)
TITLE = '{backend} {dtype}, batch size {batch_size}, {height} x {width}'
MARKER_POINTS = 6.  # diameter
FAMILY_OF = {variant: family.name for family in FAMILIES
             for variant in family.variants}
# Candidate positions of a label, best first: points from its marker, and directions
DISTANCES = (6, 13, 22, 33, 46)
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, -1), (-1, 1), (1, 1), (-1, -1))
HORIZONTAL = {-1: 'right', 0: 'center', 1: 'left'}
VERTICAL = {-1: 'top', 0: 'center', 1: 'bottom'}


def plot_accuracy(rows: Sequence[dict], settings: dict[str, Any]) -> Figure:
    """Plot reported top-1 accuracy against measured milliseconds per image.

    Args:
        rows (Sequence[dict]): From :func:`~.benchmark.make_rows`.
        settings (dict): From :meth:`~.benchmark.BenchmarkConfig.settings`.

    Returns:
        Figure: The models whose accuracy is known. One colour per family, or per
        backend, dtype, batch size and shape if these differ between rows.
    """
    rows = [row for row in rows if row['top1_reported'] is not None]
    titles = [TITLE.format(**row) for row in rows]
    groups: dict[str, list[dict]] = {}
    for row, title in zip(rows, titles):
        family = FAMILY_OF.get(row['model'], OTHERS)
        groups.setdefault(family if len({*titles}) == 1 else title, []).append(row)
    figure = Figure(INCHES, layout='constrained')
    axes = figure.subplots()
    axes.set_xscale('log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    for name, points in sorted(groups.items(), key=lambda group: group[0] == OTHERS):
        axes.scatter([row['ms_per_image'] for row in points],
                     [row['top1_reported'] for row in points], s=MARKER_POINTS**2,
                     color='dimgrey' if name == OTHERS else None, label=name)
    axes.margins(x=0.12, y=0.08)
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')
    hardware = settings['hardware']
    if settings['device'] == 'cpu':
        hardware += f', CPU threads: {settings["threads"]}'
    axes.set_xlabel(f'measured ms per image, {hardware}')
    axes.set_ylabel('ImageNet-1K top-1 accuracy (%), as reported by the authors')
    if len({*titles}) == 1:
        axes.set_title(titles[0])
    figure.draw_without_rendering()  # fixes the positions of the points
    fastest = {row['model']: row for row in sorted(
        rows, key=lambda row: row['ms_per_image'], reverse=True)}
    _label_points(axes, [*fastest.values()][::-1])
    return figure


def _label_points(axes: Axes, rows: Sequence[dict]) -> None:
    """Label each model where the label overlaps nothing, or leave it out."""
    reach = axes.figure.dpi / 72 * MARKER_POINTS / 2
    points = [(row['ms_per_image'], row['top1_reported']) for row in rows]
    taken = [axes.get_legend().get_window_extent(), *(
        Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)
        for x, y in axes.transData.transform(points))]
    for row, point in zip(rows, points):
        for distance, (right, up) in itertools.product(DISTANCES, DIRECTIONS):
            offset = distance * right, distance * up
            label = axes.annotate(
                row['model'], point, offset, textcoords='offset points', fontsize=8,
                ha=HORIZONTAL[right], va=VERTICAL[up], in_layout=False)
            box = label.get_window_extent()
            inside = all(axes.bbox.contains(*corner) for corner in (box.min, box.max))
            if inside and not any(box.overlaps(other) for other in taken):
                taken.append(box)
                if distance > DISTANCES[0]:
                    axes.annotate('', point, offset, textcoords='offset points',
                                  in_layout=False, arrowprops=dict(
                                      arrowstyle='-', color='grey', linewidth=0.5))
                break
            label.remove()
