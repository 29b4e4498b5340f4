"""Which norms and scales of a model can be folded away for inference.

Of every model a table: modules that simplify themselves (switch_to_deploy()), batch
norms and the layer each is folded into, and norms that are left and why. Then the
number of parameters before and after, and the deviation: the largest difference of an
output on a random image, relative to the largest output. More than rounding is an
error. Nothing is written: it is a report on what mm_efficient.deploy.fuse() does, and
tools/analysis_tools/benchmark.py measures what it brings (--mode fused).

Detectors of two stages are looked at up to their neck.
"""
import argparse
import logging
import sys

import torch
from mmengine.config import DictAction
from mmengine.logging import MMLogger
from rich.console import Console
from rich.table import Table

import mm_efficient  # noqa: F401
from mm_efficient.analysis.models import find_model, image_size
from mm_efficient.deploy.fusing import fuse
from mm_efficient.deploy.samples import randomize
from mm_efficient.errors import InputError, explain
from mm_efficient.models.base import fit_where_needed
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.models import load_model

EXAMPLES = r"""examples:
  variants, and models of other libraries:
    python tools/deployment/fuse.py swiftformer_xs timm/resnet50 repvgg-a0_8xb32_in1k
  a detector; a small image will do:
    python tools/deployment/fuse.py swiftformer_l1_retinanet_1x --size 224
  a trained segmentor:
    python tools/deployment/fuse.py configs/seg/swiftformer_l1_upernet_160k.py \
        --checkpoint iter_160000.pth
"""


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'models', nargs='+', metavar='MODEL',
        help='variant (soft_small), config file or its name, model of MMPretrain '
        '(resnet50_8xb32_in1k) or timm (resnet50, timm/resnet50)')
    parser.add_argument('--checkpoint', metavar='FILE',
                        help='weights of the one config file that is given (default: '
                        'random ones)')
    parser.add_argument(
        '--size', type=image_size, metavar='SIZE',
        help='224, or 800x1344, height x width (default: 224 for classifiers, '
        '800x1344 for detectors, 512 for segmentors)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='override settings of the configs')
    parser.add_argument('--num-classes', type=int, metavar='N',
                        help='number of classes of every head')
    args = parser.parse_args(argv)
    if args.checkpoint and (len(args.models) > 1 or not args.models[0].endswith('.py')):
        parser.error('--checkpoint needs one config file as MODEL')
    return args


def fuse_model(subject, args):
    """Build a model and fuse it; returns the report."""
    torch.manual_seed(0)
    if args.checkpoint:
        cfg = load_config(args.models[0], args.cfg_options,
                          num_classes=args.num_classes)
        model = load_model(cfg, args.checkpoint)
    else:
        model = subject.build()
    model.eval()
    fit_where_needed(model, torch.randn(2, 3, 96, 96))
    run = subject.run
    if hasattr(model, 'roi_head'):  # the second stage depends on the image
        def run(model, x):
            return model.extract_feat(x)
    height, width = args.size or subject.size
    x = torch.randn(1, 3, height, width)
    with explain(f'{subject.name} cannot be run on an image of {height} x {width} '
                    'pixels'):
        if not args.checkpoint:
            randomize(model, run, [x])
        return fuse(model, x, run)


def make_table(name, report):
    """Table of a report."""
    before, after = report.parameters
    table = Table(
        title=name, title_justify='left', caption_justify='left',
        caption=f'{len(report.converted)} modules converted, {len(report.folded)} '
        f'batch norms folded; {before / 1e6:.3f} M parameters before, '
        f'{after / 1e6:.3f} M after; deviation {report.deviation:.0e}')
    for column in ('module', 'class', 'folded into, or left because'):
        table.add_column(column, overflow='fold')
    for rows in (report.converted, report.folded, report.left):
        for row in rows:
            table.add_row(row.name or 'the model', row.kind, row.result)
        table.add_section()
    return table


def main(argv=None):
    """Fuse and print the tables."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    console = Console(width=max(100, Console().width))
    try:
        subjects = [find_model(name, args.cfg_options) for name in args.models]
        for subject in subjects:
            console.print(make_table(subject.name, fuse_model(subject, args)))
    except InputError as error:
        sys.exit(f'error: {error}')


if __name__ == '__main__':
    main()
