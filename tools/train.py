"""Train a classifier, detector or segmentor: the config says which."""
import argparse
import os
import sys

# Read by OpenMP when PyTorch is imported. By default waiting threads spin; two
# runs that share CPU cores then slow each other down tenfold.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from mmengine.config import DictAction  # noqa: E402

import mm_efficient  # noqa: E402, F401
from mm_efficient.errors import InputError
from mm_efficient.runs.configs import build_runner, prepare_training
from mm_efficient.runs.data_checks import check_batches

EXAMPLES = r"""examples:
  a small generated data set, minutes on a laptop:
    python tools/train.py configs/det/soft_small_maskrcnn_1x.py --mini
  data somewhere else, in the layout the config expects:
    python tools/train.py CONFIG --cfg-options data_root=/datasets/coco
  ten classes of your own, one folder each in train/ and in val/:
    python tools/train.py configs/cls/soft_tiny_300e.py \
        --cfg-options data_root=/datasets/mine num_classes=10
  go on after an interruption:
    python tools/train.py CONFIG --resume
"""


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir',
        help='folder for logs and checkpoints (default: work_dirs/<config>)')
    parser.add_argument(
        '--mini',
        action='store_true',
        help='train the same model on a miniature data set, drawn under '
        'data/mini/ on first use, with image size and schedule cut to a few '
        'minutes on two CPU cores')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='continue from this checkpoint, or from the latest one in the '
        'work dir if none is named')
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision (GPU only)')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config: train_cfg.max_epochs=1 '
        'key="[a,b]" key="[(a,b),(c,d)]" (no spaces); data_root=FOLDER moves '
        'all data sets, num_classes=N sets every head')
    parser.add_argument(
        '--launcher',
        choices=['none', 'pytorch', 'slurm', 'mpi'],
        default='none',
        help='what starts the processes, see tools/dist_train.sh (default: '
        'none, a single process)')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main(argv=None):
    """Train as the command line says."""
    args = parse_args(argv)
    try:
        runner = build_runner(prepare_training(args))
        check_batches(runner)
    except InputError as error:
        sys.exit(f'error: {error}')
    runner.train()


if __name__ == '__main__':
    main()
