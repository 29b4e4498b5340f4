"""Plot training curves of one or more work dirs, with a table of their values.

Reads the scalars.json files of MMEngine. One panel per quantity, one curve per work
dir; the logs of a resumed run are joined.
"""
import argparse
import fnmatch
import json
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import mm_efficient  # noqa: F401
from mm_efficient.errors import InputError, error_line
from mm_efficient.files import check_output
from mm_efficient.visualization.figures import FIGURE_SUFFIXES, save_figure

COLUMNS = 3  # panels per row

EXAMPLES = r"""examples:
  loss, learning rate and metrics of a run:
    python tools/visualization/plot_logs.py work_dirs/soft_small_maskrcnn_1x
  all losses of two runs, smoothed:
    python tools/visualization/plot_logs.py work_dirs/a work_dirs/b \
        --names plain norm --keys "loss*" --smooth 0.9 --out losses.pdf
  all quantities in a log:
    python tools/visualization/plot_logs.py work_dirs/a --keys "*"
"""


class Curve(NamedTuple):
    """Values of a quantity by step, and what the steps and values are."""
    values: dict[int, float]
    unit: str
    is_metric: bool


Trainings = dict[str, dict[str, Curve]]  # curves by name and key


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='work dir, '
                        'one of its dated folders, or a scalars.json file')
    parser.add_argument('--out', default='curves.png', metavar='FILE',
                        help=f'{", ".join(FIGURE_SUFFIXES)} (default: curves.png)')
    parser.add_argument('--keys', nargs='+', default=[], metavar='KEY',
                        help='quantities to plot; "loss*" means all starting with loss '
                        '(default: loss, lr and the main metrics)')
    parser.add_argument('--names', nargs='+', metavar='NAME',
                        help='names of the runs (default: WORK_DIR as given)')
    parser.add_argument('--smooth', type=float, default=0., metavar='WEIGHT',
                        help='weight of the exponential moving average of training '
                        'curves, at least 0 and below 1 (default: 0, no smoothing)')
    args = parser.parse_args(argv)
    args.names = args.names or args.work_dirs
    if len(set(args.names)) != len(args.work_dirs):
        parser.error(f'expected {len(args.work_dirs)} different --names')
    if not 0 <= args.smooth < 1:
        parser.error('--smooth must be at least 0 and below 1')
    return args


def read_records(file: Path) -> list[dict]:
    """Read the lines of a scalars.json; the last one may be incomplete."""
    records, lines = [], file.read_text(encoding='utf-8').splitlines()
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            record['step']
            records.append(record)
        except (ValueError, TypeError, KeyError):
            if number < len(lines):
                raise InputError(f'{file}, line {number}: expected a JSON object with '
                                 '"step", as MMEngine writes it.') from None
    return records


def read_run(file: Path) -> dict[str, Curve]:
    """Read the curves in one scalars.json."""
    records, curves = read_records(file), {}
    by_epoch = any('epoch' in record for record in records)
    for record in records:
        is_metric = 'iter' not in record
        unit = 'epoch' if is_metric and by_epoch else 'iteration'
        for key, value in record.items():
            if key in ('step', 'iter', 'epoch') or isinstance(value, str):
                continue
            if is_metric and key in ('time', 'data_time', 'memory'):
                key = f'val/{key}'
            curve = curves.setdefault(key, Curve({}, unit, is_metric))
            curve.values[record['step']] = float(value)
    return curves


def read_curves(path: str | Path) -> dict[str, Curve]:
    """Read the curves of a run; steps repeated after a resume are replaced."""
    path = Path(path)
    files = [path] if path.is_file() else sorted(
        [*path.glob('*/vis_data/scalars.json'), *path.glob('vis_data/scalars.json')])
    curves: dict[str, Curve] = {}
    for file in files:
        for key, curve in read_run(file).items():
            older = curves[key].values if key in curves else {}
            kept = {step: older[step] for step in older if step < min(curve.values)}
            curves[key] = curve._replace(values={**kept, **curve.values})
    if not curves:
        raise InputError(f'{path} has no logged values; expected a work dir with '
                         '<date>/vis_data/scalars.json, which LocalVisBackend of '
                         'MMEngine writes at every logging interval.')
    return curves


def select_keys(trainings: Trainings, patterns: list[str]) -> list[str]:
    """Find the keys that match; by default loss, lr and the main metrics."""
    curves = {key: curve for training in trainings.values()
              for key, curve in training.items()}
    if not patterns:
        metrics = [key for key, curve in curves.items() if curve.is_metric]
        parts = 'val/', *(f'{metric}_' for metric in metrics)  # bbox_mAP_50, ...
        return [key for key in curves if key in ('loss', 'lr')
                or key in metrics and not key.startswith(parts)]
    selected: list[str] = []
    for pattern in patterns:
        found = fnmatch.filter(curves, pattern)
        if not found:
            raise InputError(f'no training has {pattern!r}; expected one of '
                             f'{", ".join(curves)}.')
        selected += [key for key in found if key not in selected]
    return selected


def draw(trainings: Trainings, keys: list[str], smooth: float) -> Figure:
    """Draw one panel per key; curves before smoothing stay in the background."""
    columns = min(COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    figure = Figure(figsize=(columns * 4.8, rows * 3.2), layout='constrained')
    panels = figure.subplots(rows, columns, squeeze=False)
    for panel, key in zip(panels.flat, keys):
        for number, (name, curves) in enumerate(trainings.items()):
            if key not in curves:
                continue
            steps, values = zip(*sorted(curves[key].values.items()))
            style = dict(color=f'C{number}', marker='o' if len(steps) < 30 else '',
                         markersize=4)
            if smooth and not curves[key].is_metric:
                panel.plot(steps, values, alpha=0.25, **style)
                averages = accumulate(
                    (0., *values), lambda old, new: smooth * old + (1 - smooth) * new)
                # The divisor corrects the bias towards the initial zero
                values = [average / (1 - smooth**n)
                          for n, average in enumerate(averages) if n]
            panel.plot(steps, values, label=name, **style)
            panel.set(title=key, xlabel=curves[key].unit)
        panel.grid(alpha=0.3)
    for panel in panels.flat[len(keys):]:
        panel.set_visible(False)
    panels[0, 0].legend(fontsize=8)
    return figure


def print_table(trainings: Trainings, keys: list[str]) -> None:
    """Print the last, smallest and largest value of every curve."""
    table = Table('training', 'quantity')
    for column in ('last', 'at', 'smallest', 'largest'):
        table.add_column(column, justify='right', no_wrap=True)
    for name, curves in trainings.items():
        for key in (key for key in keys if key in curves):
            values, unit, _ = curves[key]
            last = max(values)
            shown = values[last], min(values.values()), max(values.values())
            value, smallest, largest = (f'{each:.5g}' for each in shown)
            table.add_row(name, key, value, f'{unit} {last}', smallest, largest)
    Console().print(table)


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    with error_line():
        trainings = {name: read_curves(path)
                     for name, path in zip(args.names, args.work_dirs)}
        keys = select_keys(trainings, args.keys)
        check_output(args.out, FIGURE_SUFFIXES)
        print_table(trainings, keys)
        save_figure(draw(trainings, keys, args.smooth), args.out)
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
