"""Plot of reported accuracy against measured time, every point with its name."""
import itertools
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, ScalarFormatter
from matplotlib.transforms import Bbox

from ..weights.family import FAMILIES

OTHERS = 'other models'
PANEL_INCHES = (9., 6.)
MARKER_POINTS = 6.  # diameter
FAMILY_OF = {variant: family.name for family in FAMILIES
             for variant in family.variants}
# Where the name of a point may be, best first: points from it, and directions
DISTANCES = (6, 13, 22, 33, 46)
DIRECTIONS = ((0, 1), (0, -1), (1, 0), (-1, 0), (1, -1), (-1, 1), (1, 1), (-1, -1))
HORIZONTAL = {-1: 'right', 0: 'center', 1: 'left'}
VERTICAL = {-1: 'top', 0: 'center', 1: 'bottom'}


def draw_rows(rows: Sequence[dict], where: dict) -> Figure:
    """Figure of reported accuracy against measured time of an image.

    Args:
        rows (Sequence[dict]): From :func:`~.results.make_rows`.
        where (dict): From :func:`~.results.settings`.

    Returns:
        Figure: A panel per batch and size, of the models whose accuracy is known. A
        colour per family if all were run in one mode and precision, else per mode
        and precision.
    """
    rows = [row for row in rows if row['top1_reported'] is not None]
    panels = list(dict.fromkeys((r['batch'], r['height'], r['width']) for r in rows))
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * len(panels), height), layout='constrained')
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    kinds = {_kind(row) for row in rows}
    for axes, panel in zip(all_axes, panels):
        shown = [r for r in rows if (r['batch'], r['height'], r['width']) == panel]
        _scatter(axes, shown, by_family=len(kinds) == 1)
        axes.set_title('batch {}, {} x {}'.format(*panel))
        threads = f', {where["threads"]} thread(s)' if where['device'] == 'cpu' else ''
        axes.set_xlabel(f'measured ms per image, {where["hardware"]}{threads}')
        axes.set_ylabel('ImageNet-1K top-1 accuracy (%), as reported by the authors')
    figure.draw_without_rendering()  # names are placed where points end up
    for axes, panel in zip(all_axes, panels):
        fastest = {}
        for row in sorted(rows, key=lambda row: row['ms_per_image']):
            if (row['batch'], row['height'], row['width']) == panel:
                fastest.setdefault(row['model'], row)
        _name_points(axes, list(fastest.values()))
    return figure


def _kind(row: dict) -> str:
    return f'{row["mode"]} {row["dtype"]}'


def _scatter(axes: Axes, rows: Sequence[dict], by_family: bool) -> None:
    """Points on a logarithmic axis of time, and what their colours mean."""
    groups = {}
    for row in rows:
        name = FAMILY_OF.get(row['model'], OTHERS) if by_family else _kind(row)
        groups.setdefault(name, []).append(row)
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


def _name_points(axes: Axes, rows: Sequence[dict]) -> None:
    """Write the names of models where nothing is in the way, nearby if possible.

    A name that finds no room at any of the distances is left out.
    """
    scale = axes.figure.dpi / 72
    points = [(row['ms_per_image'], row['top1_reported']) for row in rows]
    taken = [axes.get_legend().get_window_extent()]
    for x, y in axes.transData.transform(points):
        reach = scale * MARKER_POINTS / 2
        taken.append(Bbox.from_extents(x - reach, y - reach, x + reach, y + reach))
    for row, point in zip(rows, points):
        for distance, (right, up) in itertools.product(DISTANCES, DIRECTIONS):
            offset = distance * right, distance * up
            name = axes.annotate(
                row['model'], point, offset, textcoords='offset points', fontsize=8,
                ha=HORIZONTAL[right], va=VERTICAL[up], in_layout=False)
            box = name.get_window_extent()
            inside = all(axes.bbox.contains(*corner) for corner in (box.min, box.max))
            if inside and not any(box.overlaps(other) for other in taken):
                break
            name.remove()
        else:
            continue
        taken.append(box)
        if distance > DISTANCES[0]:
            axes.annotate('', point, offset, textcoords='offset points',
                          in_layout=False, arrowprops=dict(
                              arrowstyle='-', color='grey', linewidth=0.5))
