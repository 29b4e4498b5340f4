"""Draw attention maps over an image, in the form each family computes attention.

  SOFT          the token's row of the attention matrix (may be negative), and its
                Gaussian kernel with the landmarks
  EcoFormer     similarity of hash codes with the token's, from -1 to 1
  SwiftFormer   weights of the tokens in the global query
  LowFormer     softmax row of the token, on the reduced grid
  ReduceFormer  share of each position in each channel, and where the output is large
  last stages of SOFT and EcoFormer: softmax row of the token

One row per map: the image with the token framed, a summary of all heads, single heads,
each with its range of values. In signed maps blue is negative, red positive.
"""
import argparse
import logging

import numpy as np
from matplotlib.figure import Figure
from mmengine.config import DictAction
from mmengine.logging import MMLogger

import mm_efficient  # noqa: F401
from mm_efficient.errors import InputError, error_line
from mm_efficient.files import check_output, find_images, read_image
from mm_efficient.models.base import PyramidBackbone
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.models import SHORT_SIDES, load_model, model_input
from mm_efficient.visualization.attention import (
    attention_layers,
    attention_maps,
    draw_attention,
    layer_title,
)
from mm_efficient.visualization.figures import FIGURE_SUFFIXES, save_figure

EXAMPLES = r"""examples:
  the last block of every stage, for the token in the center:
    python tools/visualization/attention_maps.py image.jpg \
        configs/cls/soft_tiny_300e.py --checkpoint soft_tiny.pth
  stage 2 of a detector's backbone, for the token at pixel (x, y) of the image:
    python tools/visualization/attention_maps.py image.jpg \
        configs/det/soft_tiny_maskrcnn_1x.py --checkpoint epoch_12.pth \
        --stages 2 --token 410 220
  published weights:
    python tools/visualization/attention_maps.py image.jpg \
        configs/cls/swiftformer_xs_300e.py --checkpoint published://swiftformer_xs
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('image', help='image file')
    parser.add_argument('config', help='config file of any task')
    parser.add_argument('--checkpoint', help='weights (default: those named by '
                        'init_cfg of the backbone, else random ones)')
    parser.add_argument('--out', default='attention.png', metavar='FILE',
                        help=f'{", ".join(FIGURE_SUFFIXES)} (default: attention.png)')
    parser.add_argument('--token', type=int, nargs=2, metavar=('X', 'Y'),
                        help='pixel of the original image whose token is the query '
                        '(default: the center)')
    parser.add_argument('--stages', type=int, nargs='+', choices=range(1, 5),
                        default=[1, 2, 3, 4], metavar='1-4',
                        help='stages to draw (default: all with attention)')
    parser.add_argument('--all-blocks', action='store_true',
                        help='draw every block of these stages, not only the last')
    parser.add_argument('--heads', type=int, default=4,
                        help='number of heads (ReduceFormer: channels) to draw '
                        '(default: 4)')
    parser.add_argument('--short-side', type=int, metavar='PIXELS', help='resize the '
                        'shorter side of the image to this (default: 224 for '
                        'classifiers, 800 for detectors, 512 for segmentors)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, ... (default: cpu)')
    parser.add_argument('--mini', action='store_true',
                        help='for a checkpoint trained with --mini')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        metavar='KEY=VALUE', help='override settings of the config')
    parser.add_argument('--num-classes', type=int, metavar='N',
                        help='number of classes of every head')
    return parser.parse_args(argv)


def choose_layers(backbone: PyramidBackbone, stages: list[int],
                  all_blocks: bool) -> list[str]:
    """Choose the attention layers to draw."""
    by_stage: dict[int, list[str]] = {}
    for name in attention_layers(backbone):
        by_stage.setdefault(int(name.split('.')[1]) + 1, []).append(name)
    chosen = [name for stage in stages
              for name in by_stage.get(stage, [])[0 if all_blocks else -1:]]
    if not chosen:
        raise InputError(f'there is no attention in stages {stages}; this '
                         f'{type(backbone).__name__} has it in {list(by_stage)}.')
    return chosen


def scale_pixel(token: list[int] | None, original: np.ndarray,
                resized: np.ndarray) -> tuple[int, int]:
    """Row and column in the resized image of a pixel (x, y) of the original."""
    height, width = original.shape[:2]
    x, y = token or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(f'--token {x} {y} is outside the image, which is {width} wide '
                         f'and {height} high.')
    return y * resized.shape[0] // height, x * resized.shape[1] // width


def draw(args: argparse.Namespace) -> Figure:
    """Compute and draw the maps, and print their shapes and ranges."""
    file, *others = find_images(args.image)
    if others:
        raise InputError(f'{args.image} is a folder; expected one image.')
    check_output(args.out, FIGURE_SUFFIXES)
    cfg = load_config(args.config, args.cfg_options, args.mini,
                      num_classes=args.num_classes)
    image = read_image(file, args.short_side or SHORT_SIDES[cfg.default_scope])
    pixel = scale_pixel(args.token, read_image(file), image)
    model = load_model(cfg, args.checkpoint, args.device)
    if not isinstance(model.backbone, PyramidBackbone):
        raise InputError(f'{args.config} has the backbone '
                         f'{type(model.backbone).__name__}, expected one of this '
                         'package.')
    layers = choose_layers(model.backbone, args.stages, args.all_blocks)
    maps = attention_maps(model.backbone, model_input(model, image), pixel, layers)
    for name, found in maps.items():
        for each in found:
            number, height, width = each.values.shape
            print(f'{layer_title(name)}: {each.title}, {number} {each.parts}(s) of '
                  f'{height} x {width}, {each.values.min():.3g} to '
                  f'{each.values.max():.3g}')
    return draw_attention(image, maps, pixel, args.heads)


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    with error_line():
        save_figure(draw(args), args.out)
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
