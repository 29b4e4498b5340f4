"""Draw feature maps of a backbone and its neck over an image, with a table of them.

One row per feature map: the image, the L2 norm over the channels (their mean is
constant after a layer norm), and the channels that vary most. "constant" counts the
channels with the same value everywhere.
"""
import argparse
import logging
import math

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.config import DictAction
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import mm_efficient  # noqa: F401
from mm_efficient.errors import InputError, error_line
from mm_efficient.files import check_output, find_images, read_image
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.models import SHORT_SIDES, load_model, model_input
from mm_efficient.visualization.figures import (
    FIGURE_SUFFIXES,
    draw_row,
    grid_figure,
    save_figure,
)

EXAMPLES = r"""examples:
  backbone and FPN of a detector:
    python tools/visualization/feature_maps.py image.jpg \
        configs/det/soft_tiny_maskrcnn_1x.py --checkpoint epoch_12.pth
  all four stages of a classifier's backbone:
    python tools/visualization/feature_maps.py image.jpg \
        configs/cls/swiftformer_xs_300e.py --short-side 448 --cfg-options \
        "model.backbone.out_indices=(0,1,2,3)"
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
    parser.add_argument('--out', default='features.png', metavar='FILE',
                        help=f'{", ".join(FIGURE_SUFFIXES)} (default: features.png)')
    parser.add_argument('--channels', type=int, default=4,
                        help='number of channels to draw (default: 4)')
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


@torch.no_grad()
def feature_maps(model: nn.Module, x: Tensor) -> dict[str, tuple[Tensor, int]]:
    """Feature maps (C, h, w) of backbone and neck by name, each with its stride."""
    outputs = dict(backbone=model.backbone(x))
    if getattr(model, 'with_neck', False):
        outputs['neck'] = model.neck(outputs['backbone'])
    maps = {}
    for name, levels in outputs.items():
        levels = levels if isinstance(levels, (tuple, list)) else [levels]
        for i, level in enumerate(levels, 1):
            if level.ndim == 4:  # not a pooled vector
                # h and w are rounded up, which matters least on the longer side
                ratio = max(x.shape[2] / level.shape[2], x.shape[3] / level.shape[3])
                maps[f'{name} {i}'] = level[0].cpu(), 2**round(math.log2(ratio))
    return maps


def print_table(maps: dict[str, tuple[Tensor, int]]) -> None:
    """Print shapes and statistics."""
    table = Table('feature map')
    for column in ('stride', 'channels', 'size', 'mean', 'std', 'constant'):
        table.add_column(column, justify='right')
    for name, (values, stride) in maps.items():
        channels, rows, columns = values.shape
        deviation = values.flatten(1).std(1, correction=0)
        constant = (deviation <= 1e-6 * values.abs().max()).sum()
        table.add_row(name, f'{stride}', f'{channels}', f'{rows} x {columns}',
                      f'{values.mean():.3g}', f'{values.std():.3g}', f'{constant}')
    Console().print(table)


def draw(image: np.ndarray, maps: dict[str, tuple[Tensor, int]],
         num_channels: int) -> Figure:
    """Draw every feature map in a row of its own."""
    figure, panels = grid_figure(len(maps), 2 + num_channels,
                                 image.shape[1] / image.shape[0])
    for row, (name, (values, stride)) in zip(panels, maps.items()):
        channels, height, width = values.shape
        variance = values.flatten(1).var(1, correction=0)
        chosen = variance.topk(min(num_channels, channels)).indices.tolist()
        draw_row(row, image, f'{name}: stride {stride}\n{channels}x{height}x{width}',
                 {'norm': values.norm(dim=0)} | {f'channel {i}': values[i]
                                                 for i in chosen},
                 (height * stride, width * stride))
    return figure


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    with error_line():
        file, *others = find_images(args.image)
        if others:
            raise InputError(f'{args.image} is a folder; expected one image.')
        check_output(args.out, FIGURE_SUFFIXES)
        cfg = load_config(args.config, args.cfg_options, args.mini,
                          num_classes=args.num_classes)
        image = read_image(file, args.short_side or SHORT_SIDES[cfg.default_scope])
        model = load_model(cfg, args.checkpoint, args.device)
        maps = feature_maps(model, model_input(model, image))
        print_table(maps)
        save_figure(draw(image, maps, args.channels), args.out)
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
