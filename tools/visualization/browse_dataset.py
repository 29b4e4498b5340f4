r"""Draw samples of a data set, as the config's pipeline returns them.

One figure with a grid of annotated images, cropped, flipped and distorted as for the
model, before normalization. Mixup and CutMix, which act on batches, are not applied.

examples:
  browse_dataset.py configs/det/soft_tiny_maskrcnn_1x.py
  browse_dataset.py configs/seg/soft_tiny_fpn_80k.py --split val --data-root /data/ade
  one image with eight different augmentations:
  browse_dataset.py configs/cls/soft_tiny_300e.py --num-samples 8 \
      --cfg-options "train_dataloader.dataset.indices=[17]"
"""
import argparse
from pathlib import Path

from matplotlib.axes import Axes
from mmengine.registry import DATASETS, VISUALIZERS, DefaultScope
from mmengine.visualization import Visualizer
from rich.progress import track

from mm_efficient.errors import InputError, error_line, explain
from mm_efficient.runs.arguments import check_datasets
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.options import data_parser
from mm_efficient.runs.own_data import check_splits
from mm_efficient.runs.traversal import split_datasets
from mm_efficient.visualization import add_out, check_figure, grid_figure, save_figure


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = data_parser(__doc__)
    parser.add_argument('config', help='config file of any task')
    parser.add_argument('--split', choices=['train', 'val', 'test'], default='train',
                        help='data set of the config (default: train)')
    parser.add_argument('--num-samples', type=int, default=12,
                        help='number of samples, evenly spaced (default: 12)')
    add_out(parser, 'dataset.png')
    return parser.parse_args(argv)


def draw(panel: Axes, data: dict, visualizer: Visualizer) -> None:
    """Draw a sample with its annotations."""
    image, sample = data['inputs'].flip(0), data['data_samples']  # from BGR to RGB
    image = image.permute(1, 2, 0).clamp(0, 255).byte().contiguous().numpy()
    if hasattr(visualizer, 'visualize_cls'):
        visualizer.visualize_cls(image, sample, draw_pred=False, resize=480)
    else:
        if 'gt_instances' in sample:  # the visualizer does not draw HorizontalBoxes
            sample.gt_instances.bboxes = sample.gt_instances.bboxes.tensor
        visualizer.add_datasample('sample', image, sample, draw_pred=False)
    panel.imshow(visualizer.get_image())
    panel.set_title(f'{Path(sample.img_path).name} {image.shape[:2]}', fontsize=9)


def main(argv: list[str] | None = None) -> None:
    """Run the tool."""
    args = parse_args(argv)
    split, number = args.split, args.num_samples
    with error_line():
        if number < 1:
            raise InputError('--num-samples must be at least 1.')
        check_figure(args.out)
        cfg = load_config(args.config, args.cfg_options, args.mini,
                          data_root=args.data_root, num_classes=args.num_classes,
                          classes=args.classes)
        check_datasets(cfg, [split])
        check_splits(cfg, [split], args.mini, args.classes, args.num_classes)
        for part in split_datasets(cfg, split):
            # For testing, annotations are loaded after resizing and keep their size
            part.pipeline.sort(key=lambda transform: 'Load' not in str(transform.type))
        with explain('the data set cannot be drawn'), \
                DefaultScope.overwrite_default_scope(cfg.default_scope):
            dataset = DATASETS.build(cfg[f'{split}_dataloader'].dataset)
            visualizer = VISUALIZERS.build(
                {**cfg.visualizer, 'name': 'samples', 'vis_backends': None})
            visualizer.dataset_meta, visualizer.alpha = dataset.metainfo, 0.5
            figure, panels = grid_figure(-(-number // 4), min(4, number), aspect=4 / 3)
            for i in track(range(number), 'drawing', transient=True):
                draw(panels.flat[i], dataset[i * len(dataset) // number], visualizer)
        save_figure(figure, args.out)
    print(f'{number} of {len(dataset)} samples, written: {args.out}')


if __name__ == '__main__':
    main()
