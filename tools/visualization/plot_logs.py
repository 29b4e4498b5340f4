"""Plot training curves of one or more work dirs, with their last values.

Reads the scalars.json files of MMEngine. One panel per quantity, one curve per work
dir; the logs of a resumed run are joined.

examples:
  plot_logs.py work_dirs/soft_small_maskrcnn_1x
  plot_logs.py work_dirs/a work_dirs/b --names plain norm --keys "loss*" --out b.pdf
"""
import argparse
import json
from fnmatch import fnmatch
from pathlib import Path

from matplotlib.figure import Figure

from mm_efficient.errors import InputError, error_line, explain
from mm_efficient.visualization.figures import add_out, check_figure, save_figure

DEFAULT_KEYS = ['loss', 'lr', '*mAP', '*mIoU', '*top1']
Curves = dict[tuple[str, str], dict[int, float]]  # values by (name, unit) and step


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('work_dirs', nargs='+', help='work dirs or scalars.json files')
    add_out(parser, 'curves.png')
    parser.add_argument('--keys', nargs='+', default=[], metavar='KEY',
                        help='quantities to plot, "*" for all (default: those of '
                        f'{" ".join(DEFAULT_KEYS)} that were logged)')
    parser.add_argument('--names', nargs='+', help='names of runs (default: work_dirs)')
    args = parser.parse_args(argv)
    args.names = args.names or args.work_dirs
    if len(set(args.names)) != len(args.work_dirs):
        parser.error(f'expected {len(args.work_dirs)} different --names')
    return args


def read_curves(path: str) -> Curves:
    """Read the curves of a run; steps repeated after a resume are replaced."""
    curves: Curves = {}
    for file in sorted(Path(path).glob('*/vis_data/scalars.json')) or [Path(path)]:
        with explain(f'{file} cannot be read', 'Expected a work dir of MMEngine, with '
                     '<date>/vis_data/scalars.json, or such a file'):
            lines = file.read_text(encoding='utf-8').split('\n')[:-1]  # whole ones
            by_epoch = False
            for record in map(json.loads, lines):
                is_metric, step = 'iter' not in record, record['step']
                by_epoch |= 'epoch' in record
                unit = 'epoch' if is_metric and by_epoch else 'iteration'
                ignored = ['step', 'iter', 'epoch'] + ['time', 'data_time'] * is_metric
                for name in (name for name in record if name not in ignored):
                    curve = curves.setdefault((name, unit), {})
                    while curve and next(reversed(curve)) >= step:
                        curve.popitem()
                    curve[step] = float(record[name])
    if not curves:
        raise InputError(f'{path} has no logged values.')
    return curves


def select_keys(runs: dict[str, Curves], patterns: list[str]) -> list[tuple[str, str]]:
    """Find the keys that match the patterns, or the default ones if there are any."""
    keys = list(dict.fromkeys(key for curves in runs.values() for key in curves))
    found = [[key for key in keys if fnmatch(key[0], pattern)]
             for pattern in patterns or DEFAULT_KEYS]
    if patterns and not all(found):
        raise InputError(f'no run has all of {", ".join(patterns)}; expected some of '
                         f'{", ".join(name for name, _ in keys)}.')
    return list(dict.fromkeys(sum(found, []))) or keys


def draw(runs: dict[str, Curves], keys: list[tuple[str, str]]) -> Figure:
    """Draw one panel per key; the legend has the last values."""
    figure = Figure(figsize=(8, 3 * len(keys)), layout='constrained')
    for panel, key in zip(figure.subplots(len(keys), squeeze=False).flat, keys):
        panel.set(ylabel=key[0], xlabel=key[1])
        for i, (name, curves) in enumerate(runs.items()):
            if key in curves:
                steps, values = zip(*curves[key].items())
                panel.plot(steps, values, f'C{i}', label=f'{name}: {values[-1]:.4g}',
                           marker='o' if len(steps) < 30 else '', markersize=4)
        panel.legend()
        panel.grid(alpha=0.3)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    with error_line():
        check_figure(args.out)
        runs = dict(zip(args.names, map(read_curves, args.work_dirs)))
        save_figure(draw(runs, select_keys(runs, args.keys)), args.out)
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
