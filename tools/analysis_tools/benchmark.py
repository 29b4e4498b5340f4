"""Time models side by side, in interleaved rounds, by LowFormer's published protocol.

Random weights, inference mode, warm-up, then each pass timed on its own, with device
events on CUDA; the median is reported. Models are timed in interleaved rounds, and the
ratio of two is the median over rounds of the ratio of their medians in a round. Other
load on the machine hardly affects it, and it carries over between machines far better
than milliseconds.

Backends: eager, compile (torch.compile), torchscript (traced, frozen and optimised for
inference, as published), onnxruntime (fp32 only). Changes to the model may precede
them, joined with +, such as fused+channels_last+compile: fused folds batch norms and
scales (tools/deployment/fuse.py shows which), channels_last is the memory format of
weights and images. fp16 and bf16 are automatic mixed precision inside the model.

Columns: ms is the median time of a pass, averaged over --jobs; images/s is the total of
all jobs; ratio refers to the baseline; MiB is the peak memory of tensors, weights
included; deviation is the largest relative error of an output, compared with the eager
model in fp32. Files also hold mean_ms and ms_per_image.

examples:
  three classifiers at 224 x 224, batch size 1, one CPU thread:
    benchmark.py timm/resnet50 swin-tiny_16xb64_in1k soft_small
  published throughput:
    benchmark.py lowformer_b1 --device cuda --backend torchscript --batch-size 200
  the gain of fusing, memory format and compiling, at two shapes, written to files:
    benchmark.py swiftformer_xs timm/resnet50 --shape 224 512 \\
        --backend eager fused fused+channels_last compile --out speed.csv speed.json
  backbones at detection size, as detectors use them:
    benchmark.py soft_tiny_retinanet_1x lowformer_b1_retinanet_1x --backbone \\
        --shape 800x1344
  reported accuracy against latency; then the plot again from the file of a run:
    benchmark.py soft_tiny timm/resnet18 --top1 timm/resnet18=69.8 --plot accuracy.png
    benchmark.py --from speed.json --plot accuracy.png
"""
import argparse
import dataclasses
import os

# Read when PyTorch is imported. By default idle threads spin, which slows down other
# processes; and the profiler, which measures memory, warns if there is no GPU.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

import logging  # noqa: E402

from mmengine.logging import MMLogger  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import Progress  # noqa: E402
from rich.table import Table  # noqa: E402

import mm_efficient  # noqa: E402, F401
from mm_efficient.analysis import benchmark, image_shape  # noqa: E402
from mm_efficient.analysis.accuracy_plot import plot_accuracy  # noqa: E402
from mm_efficient.errors import InputError, error_line  # noqa: E402
from mm_efficient.files import check_output  # noqa: E402
from mm_efficient.visualization.figures import FIGURE_SUFFIXES, save_figure  # noqa: E402


def positive(kind):
    """Type of an argument: a positive, finite int or float."""
    def parse(text):
        value = kind(text)
        if not 0 < value < float('inf'):
            raise ValueError
        return value
    parse.__name__ = f'positive {kind.__name__}'
    return parse


def accuracy(text):
    """Type of an argument: MODEL=VALUE."""
    name, _, value = text.rpartition('=')
    try:
        return name, float(value)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not MODEL=VALUE, such as soft_small=82.2') from None


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_run_options(parser.add_argument, positive(int))
    add_protocol_options(parser.add_argument, positive(int))
    add_output_options(parser.add_argument)
    args = parser.parse_args(argv)
    if bool(args.models) == bool(args.source):
        parser.error('expected either models to time, or --from FILE with the results '
                     'of a run')
    return args


def add_run_options(add, count):
    """What to time."""
    add('models', nargs='*', metavar='MODEL',
        help='variant (soft_small), config file or name of a config, MMPretrain model '
        '(resnet50_8xb32_in1k) or timm model (resnet50, timm/resnet50)')
    add('--backend', dest='backends', nargs='+', default=['eager'], metavar='BACKEND',
        help='eager, compile, torchscript, onnxruntime, fused, ..., see above '
        '(default: eager)')
    add('--dtype', dest='dtypes', nargs='+', default=['fp32'],
        choices=['fp32', 'fp16', 'bf16'], help='(default: fp32)')
    add('--batch-size', dest='batch_sizes', nargs='+', type=count, default=[1],
        metavar='N', help='images per pass (default: 1)')
    add('--shape', dest='shapes', nargs='+', type=image_shape, default=[(224, 224)],
        metavar='SHAPE', help='224, or 800x1344, height x width (default: 224)')
    add('--backbone', action='store_true', help='time backbones, without neck and head')
    add('--baseline', metavar='MODEL',
        help='model that ratios refer to (default: the first)')


def add_protocol_options(add, count):
    """How to time it."""
    add('--device', default='cpu', help='cpu, cuda, cuda:1, ... (default: cpu)')
    add('--threads', type=count, default=1, help='CPU threads per job (default: 1)')
    add('--jobs', type=count, default=1,
        help='processes that run the benchmark in parallel (default: 1)')
    add('--iterations', type=count, default=400, help='timed passes (default: 400)')
    add('--max-seconds', type=positive(float), default=60.,
        help='time limit for the passes of a model (default: 60)')
    add('--warmup', type=count, default=10, help='warm-up passes (default: 10)')
    add('--rounds', type=count, default=5,
        help='interleaved rounds that the passes are spread over (default: 5)')


def add_output_options(add):
    """Where the results go, and where they may come from."""
    add('--from', dest='source', metavar='FILE',
        help='show, plot or convert the .json file of a run; times nothing')
    add('--out', nargs='+', default=[], metavar='FILE', help='.csv and .json files')
    add('--plot', metavar='FILE', help='plot reported top-1 accuracy against latency, '
        f'for models whose accuracy is known ({", ".join(FIGURE_SUFFIXES)})')
    add('--top1', nargs='+', type=accuracy, default=[], metavar='MODEL=VALUE',
        help='accuracy of models whose metadata has none')


def check_top1(args, reported):
    """Check, before any work, that --top1 is for these models and --plot not empty."""
    for name, _ in args.top1:
        if name not in reported:
            raise InputError(f'--top1 {name}: expected one of the timed models, '
                             f'{", ".join(reported)}.')
    if args.plot and not any([*reported.values(), *args.top1]):
        raise InputError('--plot has nothing to show: the metadata of these models '
                         'reports no accuracy. Set it with --top1 MODEL=VALUE.')


def time_models(args):
    """Time the models, with a progress bar; returns rows and settings."""
    config = benchmark.BenchmarkConfig(**{
        field.name: getattr(args, field.name)
        for field in dataclasses.fields(benchmark.BenchmarkConfig)})
    config.check()
    check_top1(args, {name: benchmark.reported_top1(name) for name in args.models})
    with Progress(transient=True, console=Console(stderr=True)) as bar:
        task = bar.add_task('starting', total=config.num_steps)
        results = benchmark.run_benchmark(
            config, lambda step: bar.update(task, advance=1, description=step))
    return benchmark.make_rows(config, results), config.settings()


def print_rows(rows, settings):
    """Print the results as a table."""
    table = Table(caption=(
        f'{settings["hardware"]}, {settings["device"]}, {settings["threads"]} CPU '
        f'thread(s), {settings["jobs"]} job(s), torch {settings["torch"]}'))
    table.add_column('model', overflow='fold')
    table.add_column('backend', overflow='fold')
    for column in ('batch', 'shape', 'ms', 'images/s', 'ratio', 'min - max', 'MiB',
                   'deviation', 'passes'):
        table.add_column(column, justify='right', no_wrap=True)
    previous = None
    for row in rows:
        group = row['batch_size'], row['height'], row['width']
        if previous not in (None, group):
            table.add_section()
        previous = group
        memory, deviation = row['peak_mib'], row['deviation']
        table.add_row(
            row['model'], f'{row["backend"]} {row["dtype"]}', str(row['batch_size']),
            f'{row["height"]}x{row["width"]}', f'{row["median_ms"]:.4g}',
            f'{row["images_per_s"]:.4g}', f'{row["ratio"]:.3f}',
            f'{row["ratio_min"]:.2f} - {row["ratio_max"]:.2f}',
            '-' if memory is None else f'{memory:.0f}',
            '-' if deviation is None else f'{deviation:.0e}', str(row['passes']))
    Console(width=max(Console().width, 125)).print(table)


def main(argv=None):
    """Time models, or read results, and show them."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    with error_line():
        for path in args.out:
            check_output(path, ['.csv', '.json'])
        if args.plot:
            check_output(args.plot, FIGURE_SUFFIXES)
        if args.source:
            rows, settings = benchmark.read_results(args.source)
            check_top1(args, {row['model']: row['top1_reported'] for row in rows})
        else:
            rows, settings = time_models(args)
        top1 = dict(args.top1)
        for row in rows:
            row['top1_reported'] = top1.get(row['model'], row['top1_reported'])
        print_rows(rows, settings)
        for path in args.out:
            benchmark.write_results(path, rows, settings)
        if args.plot:
            save_figure(plot_accuracy(rows, settings), args.plot)
    for path in [*args.out, *filter(None, [args.plot])]:
        print(f'written: {path}')


if __name__ == '__main__':
    main()
