"""Evaluate a checkpoint with the metrics of its config."""
import argparse
import os

# Read by OpenMP when PyTorch is imported. By default waiting threads spin; two
# runs that share CPU cores then slow each other down tenfold.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

from mmengine.config import DictAction  # noqa: E402

from mm_efficient import runs  # noqa: E402
from mm_efficient.errors import error_line  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--work-dir', metavar='FOLDER',
        help='folder for the log and the metrics (default: work_dirs/<config>)')
    parser.add_argument(
        '--data-root', metavar='FOLDER',
        help='folder to read all data sets from, with the layout the config expects')
    parser.add_argument(
        '--num-classes', type=int, metavar='N', help='number of classes of every head')
    parser.add_argument(
        '--classes', nargs='+', metavar='NAME',
        help='names of the classes; of label maps in the order of their values, the '
        'background included (default: the categories of a COCO file, the names of '
        "the class folders, else the config's)")
    parser.add_argument(
        '--tta', action='store_true',
        help='test-time augmentation: average over sizes and mirror images (not for '
        'masks of instances)')
    parser.add_argument(
        '--out', metavar='FILE.pkl', help='write the predictions to a pickle')
    parser.add_argument(
        '--show', action='store_true', help='show the predictions in a window')
    parser.add_argument(
        '--show-dir', metavar='FOLDER',
        help='write images with the predictions to this folder')
    parser.add_argument(
        '--wait-time', type=float, default=2, metavar='SECONDS',
        help='how long each window of --show stays open (default: 2)')
    parser.add_argument(
        '--mini', action='store_true',
        help='test on the miniature data set, for a checkpoint that was trained with '
        '--mini')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='override settings of the config')
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
        help='what starts the processes, see tools/dist_test.sh (default: '
        'none, a single process)')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Evaluate as the command line says."""
    args = parse_args(argv)
    with error_line():
        return runs.test(
            args.config, args.checkpoint, work_dir=args.work_dir,
            data_root=args.data_root, num_classes=args.num_classes,
            classes=args.classes, tta=args.tta, out=args.out,
            show=args.show, show_dir=args.show_dir, wait_time=args.wait_time,
            cfg_options=args.cfg_options, launcher=args.launcher, mini=args.mini)


if __name__ == '__main__':
    main()
