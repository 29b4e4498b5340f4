"""A data set as the pipeline of a config delivers it, with its annotations.

One picture with a grid of samples, for classification, detection and segmentation:
cropped, flipped, resized and distorted like what the model gets, before it is
normalised. (Mixup and CutMix of classification happen later, to whole batches.)
"""
import argparse
import sys
from pathlib import Path

from mmengine.config import DictAction
from mmengine.runner import set_random_seed
from rich.progress import track

import mm_efficient  # noqa: F401
from mm_efficient.errors import InputError
from mm_efficient.files import check_output
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.mini import generate_mini_data
from mm_efficient.visualization.datasets import (
    build_dataset,
    build_visualizer,
    choose_indices,
    deliver,
    draw_dataset,
    draw_truth,
)
from mm_efficient.visualization.figures import FIGURE_SUFFIXES, save_figure

EXAMPLES = r"""examples:
  training images of a detector:
    python tools/visualization/browse_dataset.py configs/det/soft_tiny_maskrcnn_1x.py
  the same image eight times, augmented anew each time:
    python tools/visualization/browse_dataset.py configs/cls/soft_tiny_300e.py \
        --index 17 --number 8
  validation images, data somewhere else:
    python tools/visualization/browse_dataset.py configs/seg/soft_tiny_fpn_80k.py \
        --part val --data-root /datasets/ade
  the generated miniature data set:
    python tools/visualization/browse_dataset.py CONFIG --mini
"""


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of any task')
    parser.add_argument('--part', choices=['train', 'val', 'test'], default='train',
                        help='which data set of the config (default: train)')
    parser.add_argument('--out', default='dataset.png', metavar='FILE',
                        help=f'{", ".join(FIGURE_SUFFIXES)} (default: dataset.png)')
    parser.add_argument('--number', type=int, default=12,
                        help='samples to show, spread over the set (default: 12)')
    parser.add_argument('--index', type=int,
                        help='show this one sample again and again')
    parser.add_argument('--columns', type=int, default=4,
                        help='pictures in a row (default: 4)')
    parser.add_argument('--seed', type=int, default=0,
                        help='seed of the augmentation (default: 0)')
    parser.add_argument('--mini', action='store_true',
                        help='the miniature data set, drawn on first use')
    parser.add_argument('--data-root', metavar='FOLDER',
                        help='folder to read all data sets from')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        metavar='KEY=VALUE',
                        help='override settings of the config')
    args = parser.parse_args(argv)
    if args.number < 1 or args.columns < 1:
        parser.error('--number and --columns are at least 1')
    return args


def make_figure(args):
    """Draw the samples."""
    check_output(args.out, FIGURE_SUFFIXES)
    cfg = load_config(args.config, args.cfg_options, args.mini,
                      data_root=args.data_root)
    if args.mini:
        generate_mini_data(cfg.default_scope)
    dataset = build_dataset(cfg, args.part)
    visualizer = build_visualizer(cfg, dataset.metainfo)
    indices = choose_indices(len(dataset), args.number, args.index)
    set_random_seed(args.seed)
    pictures, titles = [], []
    samples = track(deliver(dataset, indices), 'drawing', len(indices), transient=True)
    for (image, sample), index in zip(samples, indices):
        pictures.append(draw_truth(visualizer, image, sample))
        name = Path(sample.metainfo.get('img_path', '')).name
        height, width = sample.metainfo.get('img_shape', image.shape)[:2]
        titles.append(f'{index}: {name}, {width} x {height}')
    print(f'{args.part}: {len(dataset)} samples of '
          f'{len(dataset.metainfo.get("classes", ()))} classes, {len(pictures)} shown')
    return draw_dataset(pictures, titles, args.columns)


def main(argv=None):
    """Show the data set as the command line says."""
    args = parse_args(argv)
    try:
        save_figure(make_figure(args), args.out)
    except InputError as error:
        sys.exit(f'error: {error}')
    print(f'written: {args.out}')


if __name__ == '__main__':
    main()
