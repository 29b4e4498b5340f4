"""Where attention looks in a photograph, by each family's own notion of it.

  SOFT          row of the attention matrix of a token (it may be negative), and the
                Gaussian kernel between the token and the landmarks
  EcoFormer     similarity of hash codes to those of a token, from -1 to 1
  SwiftFormer   weights of the tokens in the global query
  LowFormer     softmax row of a token, on the reduced grid
  ReduceFormer  share of every channel at a position, and where the output is large
  last stages of SOFT and EcoFormer: softmax row of a token

A line per layer: the photograph with the token framed, all heads in one, single heads;
below each title the smallest and largest value. Blue is negative, red positive.
"""
import argparse
import logging
import sys

from mmengine.config import DictAction
from mmengine.logging import MMLogger

import mm_efficient  # noqa: F401
from mm_efficient.errors import InputError
from mm_efficient.files import check_output, find_images, read_image
from mm_efficient.models.base import PyramidBackbone
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.models import SHORT_SIDES, load_model, model_input
from mm_efficient.visualization.attention import (
    attention_layers,
    attention_maps,
    draw_attention,
    short_name,
)
from mm_efficient.visualization.figures import FIGURE_SUFFIXES, save_figure

EXAMPLES = r"""examples:
  the last attention of every stage, for the token in the middle:
    python tools/visualization/attention_maps.py photo.jpg \
        configs/cls/soft_tiny_300e.py --checkpoint soft_tiny.pth
  stage 2 of a detector's backbone, for the token at pixel (x, y) of the photograph:
    python tools/visualization/attention_maps.py photo.jpg \
        configs/det/soft_tiny_maskrcnn_1x.py --checkpoint epoch_12.pth \
        --stages 2 --token 410 220
  published weights, see the README:
    python tools/visualization/attention_maps.py photo.jpg \
        configs/cls/swiftformer_xs_300e.py --cfg-options \
        model.backbone.init_cfg.type=Pretrained \
        model.backbone.init_cfg.checkpoint=published://swiftformer_xs
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
    parser.add_argument('--out', default='attention.png', metavar='FILE',
                        help=f'{", ".join(FIGURE_SUFFIXES)} (default: attention.png)')
    parser.add_argument(
        '--token', type=int, nargs=2, metavar=('X', 'Y'),
        help='pixel of the photograph whose token looks (default: the middle)')
    parser.add_argument('--stages', type=int, nargs='+', choices=range(1, 5),
                        default=[1, 2, 3, 4], metavar='1-4',
                        help='stages to show (default: all with attention)')
    parser.add_argument('--all-blocks', action='store_true',
                        help='every attention of these stages, not only the last')
    parser.add_argument('--heads', type=int, default=4,
                        help='single heads (ReduceFormer: channels) to show '
                        '(default: 4)')
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


def choose_layers(backbone, stages, all_blocks):
    """Names of the attention layers to show."""
    by_stage = {}
    for name in attention_layers(backbone):
        by_stage.setdefault(int(name.split('.')[1]) + 1, []).append(name)
    chosen = [name for stage in stages
              for name in by_stage.get(stage, [])[0 if all_blocks else -1:]]
    if not chosen:
        raise InputError(f'there is no attention in stages {stages}; this '
                         f'{type(backbone).__name__} has it in {list(by_stage)}.')
    return chosen


def place_token(token, original, photo):
    """Row and column, in the resized photograph, of a pixel of the original."""
    height, width = original.shape[:2]
    x, y = token or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(f'--token {x} {y} is outside the photograph, which is '
                         f'{width} wide and {height} high.')
    return y * photo.shape[0] // height, x * photo.shape[1] // width


def make_figure(args):
    """Compute the maps and draw them."""
    image, *others = find_images(args.image)
    if others:
        raise InputError(f'{args.image} is a folder; expected one photograph.')
    check_output(args.out, FIGURE_SUFFIXES)
    cfg = load_config(args.config, args.cfg_options, args.mini,
                      num_classes=args.num_classes)
    original = read_image(image)
    photo = read_image(image, args.size or SHORT_SIDES[cfg.default_scope])
    pixel = place_token(args.token, original, photo)
    model = load_model(cfg, args.checkpoint, args.device)
    if not isinstance(model.backbone, PyramidBackbone):
        raise InputError(f'{args.config} has the backbone '
                         f'{type(model.backbone).__name__}; attention is shown of the '
                         'families of this package.')
    layers = choose_layers(model.backbone, args.stages, args.all_blocks)
    maps = attention_maps(model.backbone, model_input(model, photo), pixel, layers)
    for name, found in maps.items():
        for each in found:
            print(f'{short_name(name)}: {each.title}, {len(each.values)} '
                  f'{each.parts}(s) of {each.values.shape[1]} x '
                  f'{each.values.shape[2]}, {each.values.min():.3g} to '
                  f'{each.values.max():.3g}')
    return draw_attention(photo, maps, pixel, args.heads)


def main(argv=None):
    """Show attention as the command line says."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    try:
        save_figure(make_figure(args), args.out)
    except InputError as error:
        sys.exit(f'error: {error}')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
