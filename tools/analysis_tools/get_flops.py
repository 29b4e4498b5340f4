"""Parameters, multiply-adds and activations of models.

    get_flops.py soft_small timm/resnet50 swin-tiny_16xb64_in1k
    get_flops.py configs/det/soft_small_maskrcnn_1x.py --size 800x1344
    get_flops.py soft_small --per-module 4

Convolutions, linear layers and every other matrix product are counted, those inside
attention and SOFT's landmark inverse included. One MAC is two FLOPs. OpenMMLab's
tables, and many papers, call MACs "FLOPs". What works element by element is not
counted, see mm_efficient/analysis/complexity.py. Detectors are counted with all
regions that inference keeps at most: 1000 for a box head, 100 for a mask head.
"""
import argparse
import logging
import sys

from mmengine.config import DictAction
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mm_efficient  # noqa: F401
from mm_efficient.analysis.models import complexity, find_model, image_size
from mm_efficient.errors import InputError


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'models', nargs='+', metavar='MODEL',
        help='config file of classification, detection or segmentation; variant '
        '(soft_small) or config (soft_small_maskrcnn_1x) of mm_efficient; model of '
        'MMPretrain (resnet50_8xb32_in1k) or timm (resnet50, timm/resnet50)')
    parser.add_argument(
        '--size', type=image_size, metavar='SIZE',
        help='224, or 800x1344, height x width (default: 224 for classifiers, '
        '800x1344 for detectors, 512 for segmentors)')
    parser.add_argument(
        '--per-module', type=int, nargs='?', const=3, default=1, metavar='DEPTH',
        help='list modules down to this depth (default: 1, the parts of the model; '
        'without a number: 3)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='override settings of the configs')
    return parser.parse_args(argv)


def add_rows(table, name, size, cost, depth):
    """Rows of a model and its modules."""
    def row(label, part, style=None):
        table.add_row(
            label, f'{part.parameters / 1e6:.3f}', f'{part.macs / 1e9:.3f}',
            f'{part.flops / 1e9:.3f}', f'{part.activations / 1e6:.2f}', style=style)

    row(f'{name}, {size[0]} x {size[1]}', cost, 'bold')
    for module, part in cost.modules.items():
        level = module.count('.') + 1
        if level <= depth and (part.parameters or part.macs):
            row('  ' * level + module, part)
    table.add_section()


def main(argv=None):
    """Count and print the table."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    table = Table()
    table.add_column('model, module', overflow='fold')
    for column in ('params (M)', 'GMACs', 'GFLOPs', 'activations (M)'):
        table.add_column(column, justify='right')
    notes = []
    try:
        subjects = [find_model(name, args.cfg_options) for name in args.models]
        for subject in track(subjects, 'counting', transient=True):
            cost = complexity(subject, args.size)
            add_rows(table, subject.name, args.size or subject.size, cost,
                     args.per_module)
            notes += [f'{subject.name}: {calls} calls of {operator} are not counted'
                      for operator, calls in cost.uncounted.items()]
    except InputError as error:
        sys.exit(f'error: {error}')
    Console(width=max(100, Console().width)).print(table)
    for note in notes:
        print(note)


if __name__ == '__main__':
    main()
