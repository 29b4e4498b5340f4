"""Evaluate a checkpoint with the metrics of its config."""
import argparse
import os
import sys

# Read by OpenMP when PyTorch is imported. By default waiting threads spin; two
# runs that share CPU cores then slow each other down tenfold.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from mmengine.config import DictAction  # noqa: E402

import mm_efficient  # noqa: E402, F401
from mm_efficient.errors import InputError
from mm_efficient.runs.configs import build_runner, dump_predictions, prepare_testing


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--work-dir',
        help='folder for the log and the metrics (default: '
        'work_dirs/<config>)')
    parser.add_argument(
        '--mini',
        action='store_true',
        help='evaluate on the miniature data set, for a checkpoint that was '
        'trained with --mini')
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='write the predictions as a pickle')
    parser.add_argument(
        '--show', action='store_true', help='show predictions in a window')
    parser.add_argument(
        '--show-dir', help='folder to write pictures of predictions to')
    parser.add_argument(
        '--wait-time',
        type=float,
        default=2,
        help='seconds each window of --show stays (default: 2)')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config; data_root=FOLDER moves all data '
        'sets, num_classes=N sets every head')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what starts the processes, see tools/dist_test.sh (default: '
        'none, a single process)')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main(argv=None):
    """Evaluate as the command line says."""
    args = parse_args(argv)
    try:
        runner = build_runner(prepare_testing(args))
    except InputError as error:
        sys.exit(f'error: {error}')
    if args.out:
        dump_predictions(runner, args.out)
    return runner.test()


if __name__ == '__main__':
    main()
