"""Draw samples of a data set, as the config's pipeline returns them.

One figure with a grid of annotated images, cropped, flipped and distorted as for the
model, before normalization. Mixup and CutMix, which act on batches, are not applied.
"""
import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from matplotlib.figure import Figure
from mmengine.config import Config, DictAction
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from mmengine.runner import set_random_seed
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from rich.progress import track

import mm_efficient  # noqa: F401
from mm_efficient.errors import InputError, error_line
from mm_efficient.files import check_output
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.data_checks import check_data
from mm_efficient.runs.inference import SHORT_SIDE
from mm_efficient.runs.mini import generate_mini_data
from mm_efficient.runs.own_data import find_classes
from mm_efficient.runs.traversal import split_datasets
from mm_efficient.visualization.figures import FIGURE_SUFFIXES, grid_figure, save_figure

VISUALIZER = dict(mmpretrain='UniversalVisualizer', mmdet='DetLocalVisualizer',
                  mmseg='SegLocalVisualizer')

EXAMPLES = r"""examples:
  training images of a detector:
    python tools/visualization/browse_dataset.py configs/det/soft_tiny_maskrcnn_1x.py
  one image with eight different augmentations:
    python tools/visualization/browse_dataset.py configs/cls/soft_tiny_300e.py \
        --index 17 --num-samples 8
  validation images from another folder:
    python tools/visualization/browse_dataset.py configs/seg/soft_tiny_fpn_80k.py \
        --split val --data-root /datasets/ade
  the generated miniature data set:
    python tools/visualization/browse_dataset.py CONFIG --mini
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file of any task')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train',
                        help='data set of the config (default: train)')
    parser.add_argument('--out', default='dataset.png', metavar='FILE',
                        help=f'{", ".join(FIGURE_SUFFIXES)} (default: dataset.png)')
    parser.add_argument('--num-samples', type=int, default=12,
                        help='number of samples, evenly spaced (default: 12)')
    parser.add_argument('--index', type=int, help='draw only this sample, repeatedly')
    parser.add_argument('--columns', type=int, default=4,
                        help='images per row (default: 4)')
    parser.add_argument('--seed', type=int, default=0,
                        help='seed of the augmentation (default: 0)')
    parser.add_argument('--mini', action='store_true',
                        help='use the miniature data set, generated on first use')
    parser.add_argument('--data-root', metavar='FOLDER',
                        help='folder to read all data sets from')
    parser.add_argument('--classes', nargs='+', metavar='NAME',
                        help='names of the classes, as for tools/train.py')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        metavar='KEY=VALUE', help='override settings of the config')
    args = parser.parse_args(argv)
    if args.num_samples < 1 or args.columns < 1:
        parser.error('--num-samples and --columns must be at least 1')
    return args


def build_dataset(cfg: Config, split: str, classes: list[str] | None) -> Any:
    """Build a data set that also loads annotations for testing."""
    loader = cfg.get(f'{split}_dataloader')
    if loader is None:
        raise InputError(f'the config has no {split}_dataloader.')
    check_data(cfg, split)
    find_classes(cfg, [split], classes)
    for dataset in split_datasets(cfg, split):
        if split != 'train' and cfg.default_scope == 'mmdet':
            dataset['test_mode'] = False  # mmdet drops the boxes in test mode
            dataset['filter_cfg'] = None
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return DATASETS.build(loader.dataset)


def choose_indices(size: int, num_samples: int, index: int | None) -> list[int]:
    """Choose evenly spaced samples, or one of them ``num_samples`` times."""
    if index is None:
        spaced = np.linspace(0, size - 1, min(num_samples, size))
        return spaced.round().astype(int).tolist()
    if not 0 <= index < size:
        raise InputError(f'--index {index}: the data set has samples 0 to {size - 1}.')
    return [index] * num_samples


def load_samples(dataset: Any, indices: list[int]
                 ) -> Iterator[tuple[np.ndarray, BaseDataElement]]:
    """Load RGB images (H, W, 3) and annotations of the same size."""
    pipeline = getattr(dataset, 'pipeline', None)
    names = ' '.join(type(transform).__name__
                     for transform in getattr(pipeline, 'transforms', ()))
    before, load, _ = names.partition('LoadAnnotation')
    for index in indices:
        sample = dataset[index]
        image = sample['inputs']
        if getattr(image, 'ndim', 0) != 3 or image.shape[0] != 3:
            raise InputError(f'sample {index} is a {type(image).__name__}, expected a '
                             'tensor with 3 channels; pipelines that return several '
                             'views of an image are not supported.')
        image = image.flip(0).permute(1, 2, 0).clamp(0, 255).byte().numpy()  # to RGB
        if load and 'Resize' in before:  # pipelines of a test do not resize annotations
            height, width = sample['data_samples'].ori_shape
            image = mmcv.imresize(image, (width, height))
        yield np.ascontiguousarray(image), sample['data_samples']


def build_visualizer(task: str, metainfo: dict) -> Visualizer:
    """Build the visualizer of a task, with the names and colors of a data set."""
    with DefaultScope.overwrite_default_scope(task):
        visualizer = VISUALIZERS.build(dict(type=VISUALIZER[task], name=task))
    visualizer.dataset_meta = metainfo
    if task == 'mmseg':
        visualizer.alpha = 0.5
    return visualizer


def draw_annotations(visualizer: Visualizer, image: np.ndarray,
                     sample: BaseDataElement) -> np.ndarray:
    """Draw the annotations of a sample over its image."""
    if hasattr(visualizer, 'visualize_cls'):
        return visualizer.visualize_cls(image, sample, draw_pred=False,
                                        resize=SHORT_SIDE)
    boxes = sample.get('gt_instances', {}).get('bboxes')
    if hasattr(boxes, 'tensor'):  # the visualizer does not draw HorizontalBoxes
        sample.gt_instances.bboxes = boxes.tensor
    visualizer.add_datasample('sample', image, sample, draw_pred=False)
    return visualizer.get_image()


def draw_grid(images: list[np.ndarray], titles: list[str], columns: int) -> Figure:
    """Draw images in a grid."""
    columns = min(columns, len(images))
    aspect = np.median([image.shape[1] / image.shape[0] for image in images])
    figure, panels = grid_figure(-(-len(images) // columns), columns, float(aspect))
    for panel, image, title in zip(panels.flat, images, titles):
        panel.imshow(image)
        panel.set_title(title, fontsize=9)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    with error_line():
        check_output(args.out, FIGURE_SUFFIXES)
        cfg = load_config(args.config, args.cfg_options, args.mini,
                          data_root=args.data_root, classes=args.classes)
        if args.mini:
            generate_mini_data(cfg.default_scope)
        dataset = build_dataset(cfg, args.split, args.classes)
        visualizer = build_visualizer(cfg.default_scope, dataset.metainfo)
        indices = choose_indices(len(dataset), args.num_samples, args.index)
        set_random_seed(args.seed)
        images, titles = [], []
        samples = load_samples(dataset, indices)
        for index, (image, sample) in zip(
                track(indices, 'drawing', transient=True), samples):
            images.append(draw_annotations(visualizer, image, sample))
            height, width = sample.metainfo.get('img_shape', image.shape)[:2]
            name = Path(sample.metainfo.get('img_path', '')).name
            titles.append(f'{index}: {name}, {width} x {height}')
        save_figure(draw_grid(images, titles, args.columns), args.out)
    print(f'{args.split}: {len(dataset)} samples of '
          f'{len(dataset.metainfo.get("classes", ()))} classes, {len(images)} drawn\n'
          f'written: {args.out}')


if __name__ == '__main__':
    main()
