"""Latency and throughput of models, side by side in one run.

By LowFormer's published protocol: random weights, inference mode, warm-up, then every
pass timed on its own, on a GPU between two events of the device; the median counts. The
models take turns, and the ratio of two is the median over the turns of the ratio of
their medians: it hardly depends on what else the machine does, and carries over between
machines far better than milliseconds.

Modes: eager, compile (torch.compile), torchscript (traced, frozen, optimised for
inference: the published way), onnxruntime (fp32). Changes to the model come before,
joined with +, as in fused+channels_last+compile: fused folds batch norms and scales
(tools/deployment/fuse.py shows which), channels_last is the layout of weights and
images.
fp16 and bf16 are automatic mixed precision inside the model.

Columns: ms is the median of a pass, of a whole batch; with --jobs it is the mean over
the processes of their medians, and images/s is of all processes together. x is the
ratio, min - max the smallest and largest one of all turns. MiB is the most that tensors
take at a time, weights included (not known of onnxruntime). deviation is the largest
difference of an output to the eager model in fp32, relative to the largest output.
Files also hold mean_ms and ms_per_image.
"""
import argparse
import os
import sys

# Read when PyTorch is imported. By default waiting threads spin, which slows down what
# shares the CPU; and the profiler, which measures memory, complains without a GPU.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

import logging  # noqa: E402

import torch  # noqa: E402
from mmengine.logging import MMLogger  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import (  # noqa: E402
    BarColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table  # noqa: E402

import mm_efficient  # noqa: E402, F401
from mm_efficient.analysis.accuracy_plot import draw_rows  # noqa: E402
from mm_efficient.analysis.benchmark import Plan, check_plan, make_cases, run, steps
from mm_efficient.analysis.models import image_size  # noqa: E402
from mm_efficient.analysis.results import (
    make_rows,
    read_rows,
    reported_top1,
    settings,
    write_rows,
)
from mm_efficient.errors import InputError  # noqa: E402
from mm_efficient.files import check_output
from mm_efficient.visualization.figures import FIGURE_SUFFIXES, save_figure

EXAMPLES = r"""examples:
  three classifiers at 224 x 224, one image, one CPU thread:
    python tools/analysis_tools/benchmark.py timm/resnet50 \
        swin-tiny_16xb64_in1k soft_small
  published latency, and published throughput (on a GPU):
    python tools/analysis_tools/benchmark.py lowformer_b1 --device cuda \
        --mode torchscript --iterations 4000 --max-seconds 600
    python tools/analysis_tools/benchmark.py lowformer_b1 --device cuda \
        --mode torchscript --batch 200 --warmup 15
  what fusing, the layout and compiling bring, at two sizes, to files:
    python tools/analysis_tools/benchmark.py swiftformer_xs timm/resnet50 \
        --mode eager fused fused+channels_last compile --size 224 512 \
        --out speed.csv speed.json
  backbones at detection size, as the configs of detectors have them:
    python tools/analysis_tools/benchmark.py soft_tiny_retinanet_1x \
        lowformer_b1_retinanet_1x --backbone --size 800x1344
  reported accuracy against measured latency:
    python tools/analysis_tools/benchmark.py resnet50_8xb32_in1k soft_tiny \
        timm/resnet18 --plot accuracy.png --top1 timm/resnet18=69.8
  the plot again, from the file of an earlier run:
    python tools/analysis_tools/benchmark.py --from speed.json --plot accuracy.png
"""


def positive(text):
    """A positive integer."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive integer')
    return int(text)


def seconds(text):
    """A positive number."""
    try:
        value = float(text)
    except ValueError:
        value = 0.
    if not 0 < value < float('inf'):
        raise argparse.ArgumentTypeError(f'{text!r} is not a positive number')
    return value


def model_accuracy(text):
    """``NAME=VALUE``."""
    name, _, value = text.rpartition('=')
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not NAME=VALUE, as in soft_small=82.2') from None


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'models', nargs='*', metavar='MODEL',
        help='variant (soft_small), config file or its name, model of MMPretrain '
        '(resnet50_8xb32_in1k) or timm (resnet50, timm/resnet50)')
    parser.add_argument('--from', dest='source', metavar='FILE',
                        help='.json file of an earlier run, to be shown, plotted or '
                        'converted; nothing is measured')
    parser.add_argument('--mode', nargs='+', default=['eager'], metavar='MODE',
                        help='eager, compile, torchscript, onnxruntime, fused, ..., '
                        'see above (default: eager)')
    parser.add_argument('--dtype', nargs='+', default=['fp32'],
                        choices=['fp32', 'fp16', 'bf16'], help='(default: fp32)')
    parser.add_argument('--batch', nargs='+', type=positive, default=[1], metavar='N',
                        help='images at a time (default: 1)')
    parser.add_argument('--size', nargs='+', type=image_size, default=[(224, 224)],
                        metavar='SIZE', help='224, or 800x1344, height x width '
                        '(default: 224)')
    parser.add_argument('--backbone', action='store_true',
                        help='without neck and head')
    parser.add_argument('--baseline', metavar='MODEL',
                        help='what ratios are to (default: the first model)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, ... (default: cpu)')
    parser.add_argument('--threads', type=positive, default=1,
                        help='CPU threads of a process (default: 1)')
    parser.add_argument('--jobs', type=positive, default=1,
                        help='processes that measure at the same time (default: 1)')
    parser.add_argument('--iterations', type=positive, default=400,
                        help='timed passes of each (default: 400)')
    parser.add_argument('--max-seconds', type=seconds, default=60.,
                        help='longest time for the passes of each (default: 60)')
    parser.add_argument('--warmup', type=positive, default=10,
                        help='passes before (default: 10)')
    parser.add_argument('--rounds', type=positive, default=5,
                        help='how often they take turns (default: 5)')
    parser.add_argument('--out', nargs='+', default=[], metavar='FILE',
                        help='.csv and .json files to write')
    parser.add_argument('--plot', metavar='FILE',
                        help='draw reported top-1 accuracy against measured time, of '
                        f'models it is known of ({", ".join(FIGURE_SUFFIXES)})')
    parser.add_argument('--top1', nargs='+', type=model_accuracy, default=[],
                        metavar='MODEL=VALUE',
                        help='accuracy of models that have none in their metadata')
    args = parser.parse_args(argv)
    if bool(args.models) == bool(args.source):
        parser.error('name models to measure, or the file of an earlier run with '
                     '--from FILE; one of the two')
    return args


def check_accuracies(args, models, accuracies):
    """Find out in time that a plot would be empty, or --top1 is of another model."""
    unknown = [name for name, _ in args.top1 if name not in models]
    if unknown:
        raise InputError(f'--top1 {unknown[0]}: expected one of the models that are '
                         f'measured, {", ".join(dict.fromkeys(models))}.')
    if args.plot and not any(accuracies):
        raise InputError('--plot has nothing to show: the metadata of these models '
                         'reports no accuracy. Name it with --top1 MODEL=VALUE.')


def read(args):
    """Rows and settings of an earlier run."""
    rows, where = read_rows(args.source)
    top1 = dict(args.top1)
    for row in rows:
        row['top1_reported'] = top1.get(row['model'], row['top1_reported'])
    check_accuracies(args, [row['model'] for row in rows],
                     [row['top1_reported'] for row in rows])
    return rows, where


def measure(args):
    """Measure, with a bar that shows what and how long; gives rows and settings."""
    plan = Plan(
        make_cases(args.models, args.mode, args.dtype, args.batch, args.size),
        args.device, args.threads, args.jobs, args.iterations, args.warmup, args.rounds,
        args.max_seconds, args.backbone, args.baseline)
    check_plan(plan)
    top1 = {name: reported_top1(name) for name in args.models} | dict(args.top1)
    check_accuracies(args, args.models, [top1[name] for name in args.models])
    columns = (TextColumn('{task.description}'), BarColumn(), TimeElapsedColumn(),
               TextColumn('left:'), TimeRemainingColumn())
    with Progress(*columns, transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task('starting', total=steps(plan))
        timings = run(plan, lambda what: bar.update(task, advance=1, description=what))
    return make_rows(plan, timings, top1), settings(plan)


def print_rows(rows, where):
    """Table of the results."""
    threads = '' if where['device'] != 'cpu' else f', {where["threads"]} thread(s)'
    jobs = '' if where['jobs'] == 1 else f', {where["jobs"]} jobs'
    table = Table(caption=f'{where["hardware"]}{threads}{jobs}, torch {where["torch"]}')
    for column in ('model', 'mode'):
        table.add_column(column, overflow='fold')
    for column in ('batch', 'size', 'ms', 'images/s', 'x', 'min - max', 'MiB',
                   'deviation', 'passes'):
        table.add_column(column, justify='right', no_wrap=True)
    last = None
    for row in rows:
        key = row['batch'], row['height'], row['width']
        if last not in (None, key):
            table.add_section()
        last = key
        table.add_row(
            row['model'], f'{row["mode"]} {row["dtype"]}', str(row['batch']),
            f'{row["height"]}x{row["width"]}', f'{row["median_ms"]:.4g}',
            f'{row["images_per_s"]:.4g}', f'{row["ratio"]:.3f}',
            f'{row["ratio_min"]:.2f} - {row["ratio_max"]:.2f}',
            '-' if row['peak_mib'] is None else f'{row["peak_mib"]:.0f}',
            '-' if row['deviation'] is None else f'{row["deviation"]:.0e}',
            str(row['passes']))
    Console(width=max(Console().width, 110)).print(table)


def main(argv=None):
    """Measure as the command line says."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    threads = torch.get_num_threads()
    try:
        for path in args.out:
            check_output(path, ['.csv', '.json'])
        if args.plot:
            check_output(args.plot, FIGURE_SUFFIXES)
        rows, where = read(args) if args.source else measure(args)
        print_rows(rows, where)
        for path in args.out:
            write_rows(path, rows, where)
        if args.plot:
            save_figure(draw_rows(rows, where), args.plot)
    except InputError as error:
        sys.exit(f'error: {error}')
    finally:
        torch.set_num_threads(threads)
    for path in [*args.out, *([args.plot] if args.plot else [])]:
        print(f'written: {path}')


if __name__ == '__main__':
    main()
