r"""Draw attention maps over an image, in the form each family computes attention.

  SOFT          the token's row of the attention matrix (may be negative), and its
                Gaussian kernel with the landmarks
  EcoFormer     similarity of hash codes with the token's, from -1 to 1
  SwiftFormer   weights of the tokens in the global query
  LowFormer     softmax row of the token, on the reduced grid
  ReduceFormer  share of each position in each channel, and where the output is large
  last stages of SOFT and EcoFormer: softmax row of the token

One row per map: the image with the token framed, a summary of all heads, single heads,
each with its range of values. In signed maps blue is negative, red positive.

examples:
  the last block of every stage, for the token in the center:
  attention_maps.py image.jpg configs/cls/soft_tiny_300e.py --checkpoint soft_tiny.pth
  stage 2 of a detector's backbone, for the token at pixel (x, y) of the image:
  attention_maps.py image.jpg configs/det/soft_tiny_maskrcnn_1x.py \
      --checkpoint epoch_12.pth --stages 2 --token 410 220
  published weights:
  attention_maps.py image.jpg configs/cls/swiftformer_xs_300e.py \
      --checkpoint published://swiftformer_xs
"""
import argparse

from mm_efficient.errors import InputError, error_line, explain
from mm_efficient.files import find_images, read_image
from mm_efficient.models.base import PyramidBackbone
from mm_efficient.visualization.attention import (
    attention_layers,
    attention_maps,
    draw_attention,
    layer_title,
)
from mm_efficient.visualization.figures import save_figure
from mm_efficient.visualization.inputs import image_parser, load_inputs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = image_parser(__doc__, 'attention.png')
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


def query_pixel(token: list[int] | None, width: int, height: int) -> tuple[int, int]:
    """Pixel (x, y) of the original image, by default the one in the center."""
    x, y = token or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(f'--token {x} {y} is outside the image, which is {width} wide '
                         f'and {height} high.')
    return x, y


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    with error_line():
        if args.heads < 0:
            raise InputError('--heads must be at least 0.')
        height, width, _ = read_image(find_images(args.image)[0]).shape
        column, row = query_pixel(args.token, width, height)
        image, model, x = load_inputs(args)
        pixel = row * image.shape[0] // height, column * image.shape[1] // width
        if not isinstance(model.backbone, PyramidBackbone):
            raise InputError(f'{args.config} has the backbone '
                             f'{type(model.backbone).__name__}, expected one of this '
                             'package.')
        layers = choose_layers(model.backbone, args.stages, args.all_blocks)
        with explain('the model cannot run on the image'):
            maps = attention_maps(model.backbone, x, pixel, layers)
        save_figure(draw_attention(image, maps, pixel, args.heads), args.out)
    for name, found in maps.items():
        for each in found:
            number, height, width = each.values.shape
            print(f'{layer_title(name)}: {each.title}, {number} {each.parts}(s) of '
                  f'{height} x {width}')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
