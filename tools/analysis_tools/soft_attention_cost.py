"""Measure what SOFT's attention costs at detection size, by form of the attention.

Compares the bounded attention (pretrain_size=224) with the published function
(pretrain_size=None), each in the fast form this package uses and in the reference form:
formulas as written, which hold every kernel matrix, differentiated by autograd, which
keeps every iterate of the inverse. Each row runs in its own process, so that its peak
memory is its own.
"""
import argparse
import contextlib
import multiprocessing
import resource
import time
from unittest.mock import patch

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

from mm_efficient.analysis import count, image_shape
from mm_efficient.models.soft import attention, backbone, newton_inverse
from mm_efficient.models.soft.gaussian_attention import gaussian_attention_reference

MIN_SECONDS = 20  # time to repeat each measurement for


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--arch', default='tiny', choices=list(backbone.SOFT.ARCHS),
                        help='(default: tiny)')
    parser.add_argument('--normalized', action='store_true', help='SOFT-Norm')
    parser.add_argument('--shape', type=image_shape, default=(800, 1344),
                        metavar='SHAPE',
                        help='224, or 800x1344, height x width (default: 800x1344)')
    parser.add_argument('--forward-only', action='store_true',
                        help='skip the backward pass')
    parser.add_argument('--skip-reference', action='store_true',
                        help='skip the reference form, which needs more than 10 GiB at '
                        '800 x 1344')
    return parser.parse_args(argv)


def regularized_inverse_reference(kernel):
    """Plain form of ``regularized_inverse``; autograd keeps every iterate."""
    identity = torch.eye(kernel.shape[-1], dtype=kernel.dtype, device=kernel.device)
    row_sum = kernel.detach().sum(-1).amax(-1)[..., None, None]
    return newton_inverse.newton_iteration_reference(
        kernel + newton_inverse.REGULARIZER * identity, 1.8 / row_sum.square(),
        newton_inverse.NEWTON_STEPS)


@contextlib.contextmanager
def form(reference):
    """Context in which SOFT is built and run in the reference or in the fast form."""
    with contextlib.ExitStack() as stack:
        for module, name, plain in reference * [
                (attention, 'gaussian_attention', gaussian_attention_reference),
                (attention, 'regularized_inverse', regularized_inverse_reference),
                (newton_inverse, 'newton_iteration',
                 newton_inverse.newton_iteration_reference)]:
            stack.enter_context(patch.object(module, name, plain))
        yield


def build(args, pretrain_size):
    """Build the dense backbone of a row."""
    torch.manual_seed(0)
    return backbone.SOFT(args.arch, args.normalized, out_indices=(0, 1, 2, 3),
                         pretrain_size=pretrain_size)


def count_flops(args, pretrain_size, reference):
    """FLOPs of a forward pass (two per multiply-add)."""
    with form(reference), torch.device('meta'):
        return count(build(args, pretrain_size), torch.empty(1, 3, *args.shape)).flops


def peak_mib():
    """Peak resident set size of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(args, pretrain_size, reference, backward):
    """Fastest seconds, and MiB above the idle model, of one image."""
    with form(reference):
        model, x = build(args, pretrain_size), torch.randn(1, 3, *args.shape)
        model.train(backward)
        idle, start, seconds = peak_mib(), time.perf_counter(), []
        while not seconds or time.perf_counter() - start < MIN_SECONDS:
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
    passes = [False] if args.forward_only else [False, True]  # with backward or not
    rows = [(pretrain_size, reference)
            for reference in ([False] if args.skip_reference else [False, True])
            for pretrain_size in (224, None)]
    results = {}
    for row in track(rows, 'measuring'):
        results[row] = [in_own_process(count_flops, args, *row)] + [
            in_own_process(measure, args, *row, backward) for backward in passes]
    name = f'soft_{args.arch}' + '_norm' * args.normalized
    table = Table(title=f'{name}, one image of {args.shape[0]} x {args.shape[1]}, '
                  f'float32, {torch.get_num_threads()} CPU threads')
    for column in ('pretrain_size', 'form', 'GFLOPs', 'forward s', 'x', 'MiB',
                   'forward+backward s', 'x', 'MiB')[:3 + 3 * len(passes)]:
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
