"""Training curves of one or several work dirs, from MMEngine's scalars.json.

A panel per quantity, a line per training. The table lists the last value and the best
one of every quantity drawn.
"""
import argparse
import sys

from rich.console import Console
from rich.table import Table

import mm_efficient  # noqa: F401
from mm_efficient.errors import InputError
from mm_efficient.files import check_output
from mm_efficient.visualization.curves import choose_keys, draw_curves, read_run
from mm_efficient.visualization.figures import FIGURE_SUFFIXES, save_figure

EXAMPLES = r"""examples:
  loss, learning rate and metrics of a training:
    python tools/visualization/plot_logs.py work_dirs/soft_small_maskrcnn_1x
  two trainings, every part of the loss, smoothed:
    python tools/visualization/plot_logs.py work_dirs/a work_dirs/b \
        --names plain norm --keys "loss*" --smooth 0.9 --out losses.pdf
  what has been logged:
    python tools/visualization/plot_logs.py work_dirs/a --list
"""


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('runs', nargs='+', metavar='WORK_DIR',
                        help='work dir (all its starts in one line), a dated folder '
                        'of it, or a scalars.json')
    parser.add_argument('--out', default='curves.png', metavar='FILE',
                        help=f'{", ".join(FIGURE_SUFFIXES)} (default: curves.png)')
    parser.add_argument('--keys', nargs='+', metavar='KEY',
                        help='quantities to draw; loss* stands for all that begin so '
                        '(default: loss, lr and the metrics)')
    parser.add_argument('--names', nargs='+', metavar='NAME',
                        help='names of the trainings (default: their folders)')
    parser.add_argument('--smooth', type=float, default=0., metavar='WEIGHT',
                        help='weight of the moving average, from 0 (default, none) to '
                        'below 1; metrics are never smoothed')
    parser.add_argument('--list', action='store_true',
                        help='print the quantities that were logged, and draw nothing')
    args = parser.parse_args(argv)
    if args.names and len(args.names) != len(args.runs):
        parser.error(f'{len(args.runs)} trainings, but {len(args.names)} --names')
    if not 0 <= args.smooth < 1:
        parser.error('--smooth takes a weight from 0 to below 1')
    return args


def print_summary(runs, keys):
    """Table of the last, smallest and largest value of every curve."""
    table = Table()
    for column in ('training', 'quantity', 'last', 'at', 'smallest', 'largest'):
        named = column in ('training', 'quantity')
        table.add_column(column, justify='left' if named else 'right',
                         overflow='fold', no_wrap=not named)
    for run in runs:
        for key in keys:
            if key in run.curves:
                curve = run.curves[key]
                last = max(curve)
                table.add_row(
                    run.name, key, f'{curve[last]:.5g}', f'{run.axes[key]} {last}',
                    f'{min(curve.values()):.5g}', f'{max(curve.values()):.5g}')
    Console().print(table)


def main(argv=None):
    """Draw the curves as the command line says."""
    args = parse_args(argv)
    try:
        names = args.names or [None] * len(args.runs)
        runs = [read_run(path, name) for path, name in zip(args.runs, names)]
        if args.list:
            print('\n'.join(choose_keys(runs, ['*'])))
            return
        keys = choose_keys(runs, args.keys)
        check_output(args.out, FIGURE_SUFFIXES)
        print_summary(runs, keys)
        save_figure(draw_curves(runs, keys, args.smooth), args.out)
    except InputError as error:
        sys.exit(f'error: {error}')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
