"""Evaluate a checkpoint with the metrics of its config."""
import argparse
import os
import sys

# Read by OpenMP when PyTorch is imported. By default waiting threads spin; two
# runs that share CPU cores then slow each other down tenfold.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

try:
    from mm_efficient import runs
    from mm_efficient.errors import error_line
    from mm_efficient.runs.options import (
        add_backbone_options,
        data_parser,
        parse_launched,
    )
except ImportError as error:  # a package is missing, or of another version
    sys.exit(f'error: {error}. Check the installation (docs/installation.md) and '
             f'PYTHONPATH={os.environ.get("PYTHONPATH", "")}')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = data_parser(__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file')
    parser.add_argument(
        '--work-dir', metavar='FOLDER',
        help='folder for the log and the metrics (default: work_dirs/<config>)')
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
    add_backbone_options(parser)
    return parse_launched(parser, argv)


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Evaluate as the command line says."""
    args = parse_args(argv)
    with error_line():
        return runs.test(
            args.config, args.checkpoint, work_dir=args.work_dir,
            data_root=args.data_root, num_classes=args.num_classes,
            classes=args.classes, tta=args.tta, compile_backbone=args.compile,
            channels_last=args.channels_last, out=args.out,
            show=args.show, show_dir=args.show_dir, wait_time=args.wait_time,
            cfg_options=args.cfg_options, launcher=args.launcher, mini=args.mini)


if __name__ == '__main__':
    main()
