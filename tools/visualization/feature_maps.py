r"""Draw feature maps of a backbone and its neck over an image.

One row per feature map: the image, the L2 norm over the channels (their mean is
constant after a layer norm), and the channels that vary most.

examples:
  feature_maps.py image.jpg configs/det/soft_tiny_maskrcnn_1x.py --checkpoint det.pth
  all four stages of a classifier's backbone:
  feature_maps.py image.jpg configs/cls/swiftformer_xs_300e.py --short-side 448 \
      --cfg-options "model.backbone.out_indices=(0,1,2,3)"
"""
import argparse
import math

import torch
from torch import Tensor, nn

from mm_efficient.errors import InputError, error_line, explain
from mm_efficient.visualization.figures import MapRow, draw_maps, save_figure
from mm_efficient.visualization.inputs import image_parser, load_inputs


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = image_parser(__doc__, 'features.png')
    parser.add_argument('--channels', type=int, default=4,
                        help='number of channels to draw (default: 4)')
    return parser.parse_args(argv)


@torch.no_grad()
def feature_rows(model: nn.Module, x: Tensor, num_channels: int) -> list[MapRow]:
    """Compute the feature maps (C, h, w), and choose what to draw of them."""
    outputs, rows = dict(backbone=model.backbone(x)), []
    if getattr(model, 'with_neck', False):
        outputs['neck'] = model.neck(outputs['backbone'])
    maps = {f'{part} {i}': level[0] for part, levels in outputs.items()
            for i, level in enumerate(levels, 1) if level.ndim == 4}  # not pooled
    if not maps:
        raise InputError('The backbone of the config returns no feature maps, only a '
                         'vector for the classifier. Use a config of a detector or '
                         'segmentor of the same variant.')
    for name, values in maps.items():
        channels, h, w = values.shape
        # h and w are rounded up, which matters least on the longer side
        stride = 2**round(math.log2(max(x.shape[2] / h, x.shape[3] / w)))
        variance = values.flatten(1).var(1, correction=0)
        top = variance.topk(min(num_channels, channels)).indices.tolist()
        views = {'norm': values.norm(dim=0)} | {f'channel {i}': values[i] for i in top}
        rows.append(MapRow(f'{name}: stride {stride}\n{channels}x{h}x{w}', views,
                           (h * stride, w * stride)))
    return rows


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    with error_line():
        if args.channels < 0:
            raise InputError('--channels must be at least 0.')
        image, model, x = load_inputs(args)
        with explain('the model cannot run on the image'):
            rows = feature_rows(model, x, args.channels)
        save_figure(draw_maps(image, rows), args.out)
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
