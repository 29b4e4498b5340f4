"""What SOFT costs at detection size, by form of its attention.

Compares, in one run, the bounded attention (pretrain_size=224), the published
function (pretrain_size=None) and both in the plain reference form that holds
every kernel matrix and lets autograd keep every iterate. Every row is measured
in a process of its own, so that peak memory is its own.
"""
import argparse
import multiprocessing
import resource
import time

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mm_efficient.analysis.complexity import count
from mm_efficient.analysis.models import image_size
from mm_efficient.models.soft import backbone as soft
from mm_efficient.models.soft import gaussian_attention, newton_inverse
from mm_efficient.models.soft.backbone import SOFT

ENOUGH_SECONDS = 20  # of repetitions per measurement


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--arch', default='tiny', choices=list(SOFT.ARCHS))
    parser.add_argument('--normalized', action='store_true', help='SOFT-Norm')
    parser.add_argument('--size', type=image_size, default=(800, 1344), metavar='SIZE',
                        help='224, or 800x1344, height x width (default: 800x1344)')
    parser.add_argument('--forward-only', action='store_true',
                        help='leave the backward pass out')
    parser.add_argument('--skip-reference', action='store_true',
                        help='leave the rows of the reference form out; at 800 x '
                        '1344 they need more than 10 GiB')
    return parser.parse_args(argv)


def use_reference_form():
    """Let SOFT compute its attention as the formulas read."""
    soft.gaussian_attention = gaussian_attention.gaussian_attention_reference
    newton_inverse.newton_iteration = newton_inverse.newton_iteration_reference


def build(args, pretrain_size):
    """The dense backbone of a row."""
    torch.manual_seed(0)
    return SOFT(args.arch, args.normalized, out_indices=(0, 1, 2, 3),
                pretrain_size=pretrain_size)


def count_flops(args, pretrain_size, reference):
    """FLOPs of one forward pass (two per multiply-add)."""
    if reference:
        use_reference_form()
    with torch.device('meta'):
        return count(build(args, pretrain_size), torch.empty(1, 3, *args.size)).flops


def peak_mib():
    """Largest resident set of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(args, pretrain_size, reference, backward):
    """Seconds (fastest) and MiB above the idle model, of one image."""
    if reference:
        use_reference_form()
    model, x = build(args, pretrain_size), torch.randn(1, 3, *args.size)
    model.train(backward)
    idle, start, seconds = peak_mib(), time.perf_counter(), []
    while not seconds or time.perf_counter() - start < ENOUGH_SECONDS:
        begin = time.perf_counter()
        with torch.set_grad_enabled(backward):
            outs = model(x)
        if backward:
            sum(out.mean() for out in outs).backward()
        seconds.append(time.perf_counter() - begin)
        del outs
    return min(seconds), peak_mib() - idle


def in_own_process(function, *args):
    """Call ``function`` in a fresh process."""
    with multiprocessing.get_context('spawn').Pool(1) as pool:
        return pool.apply(function, args)


def main(argv=None):
    """Measure every row and print the table."""
    args = parse_args(argv)
    modes = [False] if args.forward_only else [False, True]
    forms = [False] if args.skip_reference else [False, True]
    rows = [(pretrain_size, reference) for reference in forms
            for pretrain_size in (224, None)]
    results = {}
    for row in track(rows, 'measuring'):
        results[row] = [in_own_process(count_flops, args, *row)] + [
            in_own_process(measure, args, *row, backward) for backward in modes]
    name = f'soft_{args.arch}' + '_norm' * args.normalized
    table = Table(title=f'{name}, one image of {args.size[0]} x {args.size[1]}, '
                  f'float32, {torch.get_num_threads()} CPU threads')
    for column in ('pretrain_size', 'form', 'GFLOPs', 'forward s', 'x', 'MiB',
                   'forward+backward s', 'x', 'MiB')[:9 if len(modes) > 1 else 6]:
        table.add_column(column, justify='right')
    first = results[rows[0]]
    for row in rows:
        flops, *measured = results[row]
        cells = [str(row[0]), 'reference' if row[1] else 'fast', f'{flops / 1e9:.1f}']
        for (seconds, mib), (base, _) in zip(measured, first[1:]):
            cells += [f'{seconds:.2f}', f'{seconds / base:.2f}', f'{mib:.0f}']
        table.add_row(*cells)
    Console(width=110).print(table)


if __name__ == '__main__':
    main()
