"""Train a classifier, detector or segmentor, depending on the config."""
import argparse
import os
import shlex
import sys

# Read by OpenMP when PyTorch is imported. By default waiting threads spin; two
# runs that share CPU cores then slow each other down tenfold.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

try:
    from mm_efficient import runs
    from mm_efficient.errors import StoppedError, error_line
    from mm_efficient.runs.options import (
        add_backbone_options,
        data_parser,
        parse_launched,
    )
except ImportError as error:  # a package is missing, or of another version
    sys.exit(f'error: {error}. Check the installation (docs/installation.md) and '
             f'PYTHONPATH={os.environ.get("PYTHONPATH", "")}')

EXAMPLES = r"""examples:
  a small generated data set, minutes on a laptop:
    python tools/train.py configs/det/soft_small_maskrcnn_1x.py --mini
  data in another folder, with the layout the config expects:
    python tools/train.py CONFIG --data-root /datasets/coco
  ten classes of your own, one folder each in train/ and in val/:
    python tools/train.py configs/cls/soft_tiny_300e.py \
        --data-root /datasets/mine --num-classes 10
  the categories of your own COCO files; label maps with 0, 1 and 2:
    python tools/train.py configs/det/soft_tiny_retinanet_1x.py \
        --data-root /datasets/mine
    python tools/train.py configs/seg/soft_tiny_fpn_80k.py \
        --data-root /datasets/mine --classes background road car
  a backbone that starts from one's own classifier, or from scratch:
    python tools/train.py CONFIG --pretrained work_dirs/soft_small_300e/epoch_300.pth
    python tools/train.py CONFIG --pretrained none
  continue after an interruption:
    python tools/train.py CONFIG --resume
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = data_parser(__doc__)
    parser.epilog = EXAMPLES
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--work-dir', metavar='FOLDER',
        help='folder for logs and checkpoints (default: work_dirs/<config>)')
    parser.add_argument(
        '--pretrained', metavar='FILE|URL|NAME|none',
        help="weights the backbone starts from: a file or URL (one's own or the "
        "authors'), a name such as swiftformer_xs or timm/MODEL.TAG, or none, from "
        "scratch (default: the config's; for detection and segmentation the published "
        'ones of the variant)')
    parser.add_argument(
        '--resume', nargs='?', const=True, metavar='CHECKPOINT',
        help='continue from this checkpoint, or from the latest one in the work dir '
        'if none is given')
    parser.add_argument(
        '--allow-changes', action='store_true',
        help='with --resume: go on with the batch size, optimizer, schedule and data '
        'of the config where they differ from those of the checkpoint')
    parser.add_argument(
        '--auto-resume', action='store_true',
        help='continue from the latest checkpoint in the work dir if there is one, '
        'else start: for jobs that are requeued with the same command')
    parser.add_argument(
        '--amp', action='store_true', help='mixed precision (GPU only)')
    parser.add_argument(
        '--auto-scale-lr', action='store_true',
        help='scale the learning rate with the total batch size')
    add_backbone_options(parser)
    return parse_launched(parser, argv)


def command_to_go_on(argv: list[str]) -> str:
    """Command that continues the run that ``argv`` has started."""
    words = [word for word in argv if not word.startswith('--resume=')]
    while '--resume' in words:
        at = words.index('--resume')
        has_value = at + 1 < len(words) and not words[at + 1].startswith('-')
        del words[at:at + 1 + has_value]
    if '--auto-resume' not in words:
        words.append('--resume')
    script = os.environ.get('TRAIN_SCRIPT')  # dist_train.sh or slurm_train.sh
    if script and '--launcher' in words:
        return f'{script} {shlex.join(words[words.index("--launcher") + 2:])}'
    return f'python {shlex.join([sys.argv[0], *words])}'


def main(argv: list[str] | None = None) -> None:
    """Train as the command line says."""
    args = parse_args(argv)
    with error_line():
        try:
            runs.train(
                args.config, work_dir=args.work_dir, data_root=args.data_root,
                num_classes=args.num_classes, classes=args.classes,
                pretrained=args.pretrained, resume=args.resume,
                allow_changes=args.allow_changes, auto_resume=args.auto_resume,
                amp=args.amp, auto_scale_lr=args.auto_scale_lr,
                compile_backbone=args.compile, channels_last=args.channels_last,
                cfg_options=args.cfg_options, launcher=args.launcher, mini=args.mini)
        except StoppedError as stop:
            words = sys.argv[1:] if argv is None else argv
            if str(stop):
                stop.args = (f'{stop} Go on with: {command_to_go_on(words)}', )
            raise


if __name__ == '__main__':
    main()
