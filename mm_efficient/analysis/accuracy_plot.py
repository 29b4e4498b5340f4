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
TITLE = '{backend} {dtype}, batch size {batch_size}, {height} x {width}'
MARKER_POINTS = 6.  # diameter
# Candidate positions of a label, best first: points from its marker, and directions
DISTANCES = (6, 13, 22, 33, 46)
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, -1), (-1, 1), (1, 1), (-1, -1))


def plot_accuracy(rows: Sequence[dict], settings: dict[str, Any]) -> Figure:
    """Plot reported top-1 accuracy against measured milliseconds per image.

    Args:
        rows (Sequence[dict]): From :func:`~.benchmark.run_benchmark`.
        settings (dict): From :meth:`~.benchmark.BenchmarkConfig.settings`.

    Returns:
        Figure: The models whose accuracy is known. One colour per family, or per
        backend, dtype, batch size and shape if these differ between rows.
    """
    rows = [row for row in rows if row['top1_reported'] is not None]
    titles = {TITLE.format(**row) for row in rows}
    family_of = {variant: family.name for family in FAMILIES
                 for variant in family.variants}
    groups: dict[str, list[dict]] = {}
    for row in rows:
        name = (TITLE.format(**row) if len(titles) > 1
                else family_of.get(row['model'], OTHERS))
        groups.setdefault(name, []).append(row)
    threads = f', CPU threads: {settings["threads"]}' * (settings['device'] == 'cpu')
    figure = Figure((9, 6), layout='constrained')
    axes = figure.subplots()
    axes.set(xscale='log', title=titles.pop() if len(titles) == 1 else '',
             xlabel=f'measured ms per image, {settings["hardware"]}{threads}',
             ylabel='ImageNet-1K top-1 accuracy (%), as reported by the authors')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    for name, group in sorted(groups.items(), key=lambda item: item[0] == OTHERS):
        ms, accuracy = zip(*map(_point, group))
        axes.scatter(ms, accuracy, s=MARKER_POINTS**2, label=name,
                     color='dimgrey' if name == OTHERS else None)
    axes.margins(x=0.12, y=0.08)
    axes.grid(alpha=0.3)
    axes.legend(loc='lower right')
    figure.draw_without_rendering()  # fixes the positions of the points
    fastest = {row['model']: _point(row)
               for row in sorted(rows, key=_point, reverse=True)}
    _label_points(axes, dict(reversed(fastest.items())))
    return figure


def _point(row: dict) -> tuple[float, float]:
    """Milliseconds per image, and accuracy."""
    return row['median_ms'] / row['batch_size'], row['top1_reported']


def _label_points(axes: Axes, points: dict[str, tuple[float, float]]) -> None:
    """Label each point where the label overlaps nothing, or leave it out."""
    reach = axes.figure.dpi / 72 * MARKER_POINTS / 2
    taken = [axes.get_legend().get_window_extent(), *(
        Bbox.from_extents(x - reach, y - reach, x + reach, y + reach)
        for x, y in axes.transData.transform([*points.values()]))]
    for name, point in points.items():
        for distance, (right, up) in itertools.product(DISTANCES, DIRECTIONS):
            offset = distance * right, distance * up
            label = axes.annotate(
                name, point, offset, textcoords='offset points', fontsize=8,
                ha=('center', 'left', 'right')[right],
                va=('center', 'bottom', 'top')[up], in_layout=False)
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
