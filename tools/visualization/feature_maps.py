"""Feature pyramid of a model for a photograph: levels of the backbone and the neck.

A line per level: the photograph, the magnitude of the vectors (root of the sum of
squares over channels), and the channels that vary most over the image, over the
photograph in grey; below each title the smallest (dark) and largest (bright) value.
The table counts channels that are constant, which are dead.
"""
import argparse
import logging
import sys

from mmengine.config import DictAction
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

import mm_efficient  # noqa: F401
from mm_efficient.errors import InputError
from mm_efficient.files import check_output, find_images, read_image
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.models import SHORT_SIDES, load_model, model_input
from mm_efficient.visualization.features import draw_features, feature_pyramid
from mm_efficient.visualization.figures import FIGURE_SUFFIXES, save_figure

EXAMPLES = r"""examples:
  backbone and FPN of a detector:
    python tools/visualization/feature_maps.py photo.jpg \
        configs/det/soft_tiny_maskrcnn_1x.py --checkpoint epoch_12.pth
  all four levels of a classifier's backbone:
    python tools/visualization/feature_maps.py photo.jpg \
        configs/cls/swiftformer_xs_300e.py --cfg-options \
        "model.backbone.out_indices=(0,1,2,3)" --size 448
"""


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', help='photograph')
    parser.add_argument('config', help='config file of any task')
    parser.add_argument(
        '--checkpoint',
        help='weights (default: those init_cfg of the backbone names, else random)')
    parser.add_argument('--out', default='features.png', metavar='FILE',
                        help=f'{", ".join(FIGURE_SUFFIXES)} (default: features.png)')
    parser.add_argument('--channels', type=int, default=4,
                        help='single channels to show (default: 4)')
    parser.add_argument(
        '--size', type=int, help='shorter side in pixels the photograph is resized to '
        '(default: 224 for classifiers, 800 for detectors, 512 for segmentors)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, ... (default: cpu)')
    parser.add_argument('--mini', action='store_true',
                        help='for a checkpoint that was trained with --mini')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        metavar='KEY=VALUE', help='override settings of the config')
    parser.add_argument('--num-classes', type=int, metavar='N',
                        help='number of classes of every head')
    return parser.parse_args(argv)


def print_levels(levels):
    """Table of the levels."""
    table = Table()
    for column in ('level', 'stride', 'channels', 'size', 'mean', 'std', 'constant'):
        table.add_column(column, justify='left' if column == 'level' else 'right')
    for level in levels:
        channels, rows, columns = level.maps.shape
        table.add_row(level.name, str(level.stride), str(channels),
                      f'{rows} x {columns}', f'{level.maps.mean():.3g}',
                      f'{level.maps.std():.3g}', str(level.constant))
    Console().print(table)


def make_figure(args):
    """Compute the pyramid and draw it."""
    image, *others = find_images(args.image)
    if others:
        raise InputError(f'{args.image} is a folder; expected one photograph.')
    check_output(args.out, FIGURE_SUFFIXES)
    cfg = load_config(args.config, args.cfg_options, args.mini,
                      num_classes=args.num_classes)
    photo = read_image(image, args.size or SHORT_SIDES[cfg.default_scope])
    model = load_model(cfg, args.checkpoint, args.device)
    levels = feature_pyramid(model, model_input(model, photo))
    print_levels(levels)
    return draw_features(photo, levels, args.channels)


def main(argv=None):
    """Show the pyramid as the command line says."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    try:
        save_figure(make_figure(args), args.out)
    except InputError as error:
        sys.exit(f'error: {error}')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
