"""Count parameters, multiply-adds and activations of models.

Counts convolutions, linear layers and all other matmuls, including those inside
attention and SOFT's landmark inverse. One MAC is two FLOPs; OpenMMLab's tables and many
papers call MACs "FLOPs". Elementwise work is not counted. Detectors are counted with
the most RoIs that inference keeps: 1000 for a box head, 100 for a mask head. The rules
are in mm_efficient/analysis/complexity.py.

examples:
  get_flops.py soft_small timm/resnet50 swin-tiny_16xb64_in1k
  get_flops.py configs/det/soft_small_maskrcnn_1x.py --shape 800x1344
  get_flops.py soft_small --per-module 4
"""
import argparse
import logging

from mmengine.config import DictAction
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mm_efficient  # noqa: F401
from mm_efficient.analysis import complexity, find_model, image_shape
from mm_efficient.errors import error_line


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'models', nargs='+', metavar='MODEL',
        help='classification, detection or segmentation config file; variant '
        '(soft_small) or name of a config (soft_small_maskrcnn_1x); MMPretrain model '
        '(resnet50_8xb32_in1k) or timm model (resnet50, timm/resnet50)')
    parser.add_argument(
        '--shape', type=image_shape, metavar='SHAPE',
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


def add_rows(table, name, shape, cost, max_depth):
    """Add the rows of a model and its modules."""
    rows = [(f'{name}, {shape[0]} x {shape[1]}', cost, 'bold')]
    for module, part in cost.modules.items():
        depth = module.count('.') + 1
        if depth <= max_depth and (part.parameters or part.macs):
            rows.append(('  ' * depth + module, part, None))
    for label, part, style in rows:
        table.add_row(
            label, f'{part.parameters / 1e6:.3f}', f'{part.macs / 1e9:.3f}',
            f'{part.flops / 1e9:.3f}', f'{part.activations / 1e6:.2f}', style=style)
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
    with error_line():
        specs = [find_model(name, args.cfg_options) for name in args.models]
        for spec in track(specs, 'counting', transient=True):
            cost = complexity(spec, args.shape)
            add_rows(table, spec.name, args.shape or spec.shape, cost, args.per_module)
            notes += [f'{spec.name}: not counted: {calls} calls of {operator}'
                      for operator, calls in cost.uncounted.items()]
    Console(width=max(100, Console().width)).print(table)
    for note in notes:
        print(note)


if __name__ == '__main__':
    main()
