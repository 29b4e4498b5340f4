"""Count multiplications, additions and energy of models by EcoFormer's energy model.

A multiplication costs 3.7 pJ, an addition 0.9 pJ (32-bit floats, 45 nm). Memory
traffic, activation functions, and squares and unit normalisation in the distances of
hashing are not counted; matmuls with binary codes count as additions, although general
hardware multiplies. The rules are in mm_efficient/analysis/energy.py.

examples:
  get_energy.py ecoformer_pvt_b0 timm/pvt_v2_b0
  get_energy.py ecoformer_pvt_b0 --cfg-options model.backbone.attention=softmax
"""
import argparse
import logging

from mmengine.config import DictAction
from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track
from rich.table import Table

import mm_efficient  # noqa: F401
from mm_efficient.analysis import Operations, energy, find_model, image_shape
from mm_efficient.errors import error_line


def parse_args(argv=None):
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        'models', nargs='+', metavar='MODEL',
        help='config file, variant or name of a config (ecoformer_pvt_b0), or model of '
        'MMPretrain or timm (timm/pvt_v2_b0)')
    parser.add_argument(
        '--shape', type=image_shape, metavar='SHAPE',
        help='224, or 800x1344, height x width (default: 224 for classifiers, '
        '800x1344 for detectors, 512 for segmentors)')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='override settings of the configs')
    return parser.parse_args(argv)


def add_rows(table, name, shape, parts):
    """Add the rows of a model and its parts."""
    total = sum(parts.values(), Operations())
    rows = [(f'{name}, {shape[0]} x {shape[1]}', total, 'bold'),
            *((f'  {part}', operations, None) for part, operations in parts.items()
              if operations.mul or operations.add)]
    for label, operations, style in rows:
        table.add_row(
            label, f'{operations.mul / 1e9:.3f}', f'{operations.add / 1e9:.3f}',
            f'{operations.picojoule / 1e9:.3f}',
            f'{100 * operations.picojoule / total.picojoule:.1f}', style=style)
    table.add_section()


def main(argv=None):
    """Count and print the table."""
    args = parse_args(argv)
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    table = Table()
    table.add_column('model, part', overflow='fold')
    for column in ('multiplications (G)', 'additions (G)', 'energy (mJ)', '%'):
        table.add_column(column, justify='right')
    with error_line():
        specs = [find_model(name, args.cfg_options) for name in args.models]
        for spec in track(specs, 'counting', transient=True):
            add_rows(table, spec.name, args.shape or spec.shape,
                     energy(spec, args.shape))
    Console(width=max(100, Console().width)).print(table)


if __name__ == '__main__':
    main()
