"""Time models side by side, in interleaved rounds, by LowFormer's published protocol.

Random weights, inference mode, warm-up, then each pass timed on its own, with device
events on CUDA; the median is reported. Models are timed in interleaved rounds, and the
ratio of two is the median over rounds of the ratio of their medians in a round. Other
load on the machine hardly affects it, and it carries over between machines far better
than milliseconds.

Backends: eager, compile (torch.compile), torchscript (traced, frozen and optimised for
inference, as published), onnxruntime (fp32 only), cudagraph (eager, captured in a CUDA
graph: no time is lost between kernels; inference on a GPU only). Changes to the model
may precede them, joined with +, such as fused+channels_last+compile: fused folds batch
norms and scales (tools/deployment/fuse.py shows which), channels_last is the memory
format of weights and images, converted turns both into the half precision of --dtype.
Otherwise fp16 and bf16 are automatic mixed precision inside the model.

--step train times forward and backward pass together, in training mode without
stochastic depth, with eager or compile; MiB then includes activations and gradients,
and deviation the gradients. Detectors of two stages run as they are exported, with box
decoding and NMS for a fixed number of boxes.

Columns: ms is the median time of a pass; ratio refers to --baseline, else to the first
row of that shape, batch size and step; min - max is its range over the rounds; MiB is
the peak memory of tensors, weights included; bandwidth, for inference on a GPU, is the
share of its memory bandwidth that reading and writing no more than the inputs, weights
and outputs of convolutions and matrix products takes up, as counted on the eager model
(the device copies at bandwidth_gb_s, measured at the start); deviation is the largest
relative error of an output, compared with the eager model in fp32.

examples:
  benchmark.py timm/resnet50 swin-tiny_16xb64_in1k soft_small
  a model of any repository, from a function without arguments that returns it:
    benchmark.py timm/resnet50 lowformer_b0 their_repository/model.py:make_model
  beside the models that LowFormer's authors benchmark, those of timm:
    benchmark.py rivals lowformer --batch-size 200 --device cuda --out rivals.md
  published throughput:
    benchmark.py lowformer_b1 --device cuda --backend torchscript --batch-size 200
  the gain of fusing, memory format and compiling, at two shapes, written to files:
    benchmark.py swiftformer_xs timm/resnet50 --shape 224 512 \\
        --backend eager fused fused+channels_last compile --out speed.csv speed.json
  backbones at detection size:
    benchmark.py soft_tiny_retinanet_1x timm/resnet50 --backbone --shape 800x1344
  training: time and peak memory at detection size, added to a file, and a table of it:
    benchmark.py soft_tiny --baseline timm/resnet50 --backbone --shape 800x1344 \\
        --step train --backend eager compile --out speed.jsonl
    benchmark.py --from speed.jsonl --out speed.md
  many models on a GPU; rows are saved after each, and what fails is left out:
    benchmark.py rivals --baseline timm/resnet50 --apart --device cuda --dtype fp16 \\
        --backend eager cudagraph compile --out rivals.jsonl rivals.md
  reported accuracy against latency; then the plot again from the file of a run:
    benchmark.py soft_tiny resnet50_8xb32_in1k --out speed.json --plot accuracy.png
    benchmark.py --from speed.json --plot accuracy.png
"""
import argparse
import itertools
import math
import os
import sys

# Read when PyTorch is imported. By default idle threads spin, which slows down other
# processes; and the profiler, which measures memory, warns if there is no GPU.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
os.environ.setdefault('KINETO_LOG_LEVEL', '99')

import logging  # noqa: E402

from mmengine.logging import MMLogger  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

import mm_efficient  # noqa: E402, F401
from mm_efficient.analysis import benchmark, image_shape, results  # noqa: E402
from mm_efficient.analysis.accuracy_plot import plot_accuracy  # noqa: E402
from mm_efficient.analysis.backends import DTYPES, STEPS  # noqa: E402
from mm_efficient.analysis.models import expand_groups  # noqa: E402
from mm_efficient.analysis.tables import read_published  # noqa: E402
from mm_efficient.errors import ExecutionError, InputError, error_line  # noqa: E402
from mm_efficient.files import check_output  # noqa: E402
from mm_efficient.visualization.figures import FIGURE_SUFFIXES, save_figure  # noqa: E402

DEFAULTS = vars(benchmark.BenchmarkConfig())
CELLS = {'model': '{model}', 'backend': '{backend} {dtype}', 'step': '{step}',
         'batch': '{batch_size}',
         'shape': '{height}x{width}', 'ms': '{median_ms:.4g}',
         'images/s': '{images_per_s:.4g}', 'ratio': '{ratio:.3f}',
         'min - max': '{ratio_min:.2f} - {ratio_max:.2f}', 'MiB': '{peak_mib:.0f}',
         'bandwidth': '{bandwidth:.0%}',
         'deviation': '{deviation:.0e}', 'passes': '{passes}'}


def positive(kind):
    """Type of an argument: a positive, finite int or float."""
    def parse(text):
        value = kind(text)
        if not 0 < value < float('inf'):
            raise ValueError
        return value
    parse.__name__ = f'positive {kind.__name__}'
    return parse


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.set_defaults(**DEFAULTS)
    add_run_options(parser.add_argument, positive(int))
    add_other_options(parser.add_argument, positive(int))
    args = parser.parse_args(argv)
    args.models = expand_groups(args.models)
    if bool(args.models) == bool(args.source):
        parser.error('expected either models to time, or --from FILE with the results '
                     'of a run')
    if args.apart and not args.baseline:
        parser.error('--apart needs a --baseline, beside which each model is timed')
    return args


def add_run_options(add, count):
    """What to time."""
    add('models', nargs='*', metavar='MODEL',
        help='variant (soft_small), config file or name of a config, MMPretrain model '
        '(resnet50_8xb32_in1k) or timm model (resnet50, timm/resnet50); '
        'FILE.py:FUNCTION or PACKAGE.MODULE:FUNCTION that returns a model; a family '
        '(lowformer) for all its variants; rivals, for what LowFormer was compared '
        'with')
    add('--baseline', metavar='MODEL', help='model that ratios refer to, eager in fp32 '
        '(default: the first model, in the first backend)')
    add('--apart', action='store_true', help='time each model by itself beside the '
        'baseline, and write --out after each; a run that fails is left out, with a '
        'message')
    add('--backend', dest='backends', nargs='+', default=['eager'], metavar='BACKEND',
        help='eager, compile, torchscript, onnxruntime, cudagraph, fused, ..., see '
        'above (default: eager)')
    add('--dtype', dest='dtypes', nargs='+', default=['fp32'],
        choices=[*DTYPES], help='(default: fp32)')
    add('--step', dest='steps', nargs='+', default=['forward'], choices=STEPS,
        help='inference, or forward and backward in training mode (default: forward)')
    add('--batch-size', dest='batch_sizes', nargs='+', type=count, default=[1],
        metavar='N', help='images per pass (default: 1)')
    add('--shape', dest='shapes', nargs='+', type=image_shape, default=[(224, 224)],
        metavar='SHAPE', help='224, or 800x1344, height x width (default: 224)')
    add('--backbone', action='store_true', help='time backbones, without neck and head')


def add_other_options(add, count):
    """How to time it, and where the results go."""
    add('--device', help='cpu, cuda, cuda:1, ... (default: %(default)s)')
    add('--threads', type=count, help='CPU threads (default: %(default)s)')
    add('--iterations', type=count, help='timed passes (default: %(default)s)')
    add('--max-seconds', type=positive(float),
        help='time limit for the passes of a model (default: %(default)s)')
    add('--warmup', type=count, help='warm-up passes (default: %(default)s)')
    add('--rounds', type=count, help='interleaved rounds that the passes are spread '
        'over (default: %(default)s)')
    add('--out', nargs='+', default=[], metavar='FILE',
        help='.csv, .json, .jsonl (added to a file that is there) and .md (a table of '
        'the ratios; on a GPU, without --published, of times) files')
    add('--published', metavar='FILE', help='ratios of published implementations for '
        'the .md table, such as docs/benchmark/published.json')
    add('--plot', metavar='FILE', help='plot top-1 accuracy against latency, for '
        'models whose metadata reports it; for others, set top1_reported in the .json '
        f'file of the run and use --from ({", ".join(FIGURE_SUFFIXES)})')
    add('--from', dest='source', metavar='FILE',
        help='show, plot or convert the .json or .jsonl file of runs; times nothing')


def check_plot(accuracies):
    """Check, before any work, that the plot will show a model."""
    if not any(accuracies):
        raise InputError('--plot has nothing to show: the metadata of these models '
                         'reports no accuracy. Time them with --out FILE.json, set '
                         'top1_reported there, and plot it with --from FILE.json.')


def list_runs(args, models, ways):
    """Runs of models in (backend, dtype) ways, after the baseline."""
    names = [(model, *way) for model in models for way in ways]
    if args.baseline:
        names.insert(0, (args.baseline, 'eager', 'fp32'))
    return [benchmark.BenchmarkRun(*each, batch_size, *shape, step)
            for shape, batch_size, step in itertools.product(
                args.shapes, args.batch_sizes, args.steps) for each in names]


def time_apart(args, config, ways):
    """Time one model after the other; yields the rows of each.

    If a model fails, its backends and dtypes are timed one by one, to see which.
    """
    queue = [(model, ways) for model in args.models]
    while queue:
        model, ways = queue.pop(0)
        try:
            yield benchmark.run_benchmark(list_runs(args, [model], ways), config)
        except (InputError, ExecutionError) as error:
            if len(ways) == 1:
                print(f'left out: {error}', file=sys.stderr)
            else:
                queue[:0] = [(model, [way]) for way in ways]


def time_models(args, published):
    """Time the models and write the files.

    Returns rows, settings and the number of runs that failed.
    """
    if args.plot:
        check_plot(map(benchmark.reported_top1, args.models))
    config = benchmark.BenchmarkConfig(**{key: getattr(args, key) for key in DEFAULTS})
    for path in args.out:
        results.check_addition(path, config.settings())
    ways = [*itertools.product(args.backends, args.dtypes)]
    runs = list_runs(args, args.models, ways)
    benchmark.check_runs(runs, config)
    rows = []
    for part in (time_apart(args, config, ways) if args.apart
                 else [benchmark.run_benchmark(runs, config)]):
        rows = results.latest([*rows, *part]) if rows else part
        for path in args.out:
            added = path.lower().endswith('.jsonl')
            results.write_results(path, part if added else rows, config.settings(),
                                  published)
    if not rows:
        raise ExecutionError('all runs failed, see above.')
    return rows, config.settings(), max(0, len({*runs}) - len(rows))


def print_rows(rows, settings):
    """Print the results as a table."""
    table = Table(caption=f'{settings["hardware"]}, {settings["device"]}, '
                  f'{settings["threads"]} CPU thread(s), torch {settings["torch"]}')
    for i, column in enumerate(CELLS):
        table.add_column(column, overflow='fold', no_wrap=i > 1,
                         justify='right' if i > 1 else 'left')
    for _, group in itertools.groupby(rows, lambda row: (
            row['batch_size'], row['height'], row['width'], row['step'])):
        for row in group:
            known = {key: math.nan if value is None else value
                     for key, value in row.items()}
            cells = [cell.format(**known) for cell in CELLS.values()]
            table.add_row(*('-' if cell in ('nan', 'nan%') else cell for cell in cells))
        table.add_section()
    Console(width=max(Console().width, 147)).print(table)


def main(argv=None):
    """Time models, or read results, and show them."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    with error_line():
        for path in args.out:
            check_output(path, results.SUFFIXES, [args.source])
        published = read_published(args.published) if args.published else None
        if args.plot:
            check_output(args.plot, FIGURE_SUFFIXES)
        if args.source:
            (rows, settings), failed = results.read_results(args.source), 0
            for path in args.out:
                results.check_addition(path, settings)
                results.write_results(path, rows, settings, published)
        else:
            rows, settings, failed = time_models(args, published)
        print_rows(rows, settings)
        if args.plot:
            check_plot(row['top1_reported'] for row in rows)
            save_figure(plot_accuracy(rows, settings), args.plot)
        for path in [*args.out, *filter(None, [args.plot])]:
            print(f'written: {path}')
        if failed:
            raise ExecutionError(f'runs left out: {failed}; see above.')


if __name__ == '__main__':
    main()
