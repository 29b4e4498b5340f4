"""What the command-line tools that count models share: arguments, and a table."""
import argparse
import logging
from collections.abc import Callable, Iterable, Sequence

from mmengine.logging import MMLogger
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..runs.options import OptionsAction
from .models import ModelSpec, find_model


def image_shape(text: str) -> tuple[int, int]:
    """Parse an image shape on the command line, as a ``type`` of ``argparse``.

    Args:
        text (str): A side such as ``224``, or height and width such as ``800x1344``.

    Returns:
        tuple[int, int]: Height and width.

    Raises:
        argparse.ArgumentTypeError: If it is neither.
    """
    try:
        sides = [int(side) for side in text.lower().split('x')]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(
            f'{text!r} is not an image shape; expected 224, or 800x1344 (height x '
            'width)')
    return sides[0], sides[-1]


def model_parser(description: str) -> argparse.ArgumentParser:
    """Make a parser of the arguments models, shape and cfg_options.

    Args:
        description (str): Shown by ``--help``, as it is.

    Returns:
        ArgumentParser: The parser, to be extended.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
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
        '--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE',
        help='override settings of the configs')
    return parser


def print_counts(
        args: argparse.Namespace, columns: Sequence[str],
        count: Callable[[ModelSpec, tuple[int, int]], Iterable[tuple[str, ...]]]
) -> None:
    """Count models, and print a table.

    Args:
        args (Namespace): From the parser of :func:`model_parser`.
        columns (Sequence[str]): Their titles.
        count (Callable): Function of a model and an image shape that yields rows: first
            the model's, then those of its parts.

    Raises:
        InputError: If there is no such model.
        ExecutionError: If a model cannot be run.
    """
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    table = Table()
    for i, column in enumerate(columns):
        table.add_column(column, overflow='fold' if i == 0 else 'ellipsis',
                         justify='right' if i else 'left')
    specs = [find_model(name, args.cfg_options) for name in args.models]
    for spec in track(specs, 'counting', transient=True):
        shape = args.shape or spec.shape
        for i, (label, *cells) in enumerate(count(spec, shape)):
            if i == 0:
                label += f', {shape[0]} x {shape[1]}'
            table.add_row(label, *cells, style=None if i else 'bold')
        table.add_section()
    Console(width=max(100, Console().width)).print(table)
