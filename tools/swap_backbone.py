"""Put a backbone of mm_efficient into any config of MMDetection, MMSegmentation, or
MMPretrain (classifiers).

Writes a config of a few lines on top of the stock one, for any project's own train.py:
channels, levels and strides of necks and heads, published weights, normalisation,
optimizer. Prints what was changed and why, and which compiled operators of MMCV are
missing. Frozen stages and fixed batch norms stay as in the stock config.

examples:
  swap_backbone.py mmdet::retinanet/retinanet_r50_fpn_1x_coco.py \\
      --backbone soft_small_norm --out my_retinanet.py
  swap_backbone.py my_segmentor.py --backbone lowformer_b1 --keep-optimizer
"""
import argparse
import logging

from mmengine.logging import MMLogger
from rich.console import Console

import mm_efficient  # noqa: F401
from mm_efficient.errors import InputError, error_line
from mm_efficient.runs.model_checks import check_model
from mm_efficient.swap import change_table, missing_operators, plan_swap
from mm_efficient.weights.locating import locate


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'config', help='config file, or its name in an installed package, such as '
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py')
    parser.add_argument('--backbone', required=True, metavar='VARIANT',
                        help='soft_small_norm, lowformer_b1, ... (docs/model_zoo.md)')
    parser.add_argument('--out', metavar='FILE',
                        help='config to write (default: it is printed)')
    parser.add_argument('--keep-optimizer', action='store_true',
                        help='leave the optimizer as it is (default: AdamW with the '
                        'settings of our configs replaces SGD)')
    return parser.parse_args(argv)


def notes(swap, variant):
    """What to do before training."""
    backbones = [part for part in swap.changes if 'published://' in part.reason]
    if backbones:
        try:
            locate(variant)
        except InputError as error:
            yield f'before training: {error}'
    operators = missing_operators(swap.cfg)
    if operators:
        yield ('before training: install MMCV with its compiled operators, the model '
               f'calls {", ".join(operators)}; see docs/installation.md')


def main(argv=None):
    """Swap, check and write."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.ERROR)
    with error_line():
        swap = plan_swap(args.config, args.backbone, keep_optimizer=args.keep_optimizer)
        check_model(swap.cfg, pretrained=False)
        Console(width=max(110, Console().width)).print(change_table(swap.changes))
        for note in notes(swap, args.backbone):
            print(note)
        if args.out:
            swap.write(args.out)
            print(f'written: {args.out}')
        else:
            print(swap.text('my_config.py'))


if __name__ == '__main__':
    main()
