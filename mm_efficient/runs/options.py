"""Command-line options that tools have in common."""
import argparse
import os
import sys
from typing import Any

from mmengine.config import DictAction


class OptionsAction(DictAction):
    """MMEngine's ``KEY=VALUE`` options, with one line for what it cannot read."""

    def __call__(self, parser: Any, namespace: Any, values: Any,
                 option_string: str | None = None) -> None:
        """Add options to the namespace."""
        for text in values:
            key = text.partition('=')[0]
            if '=' not in text or not all(key.split('.')):
                sys.exit(f'error: {option_string} {text}: expected KEY=VALUE, such as '
                         'train_cfg.max_epochs=1.')
            try:
                super().__call__(parser, namespace, [text], option_string)
            except (AssertionError, RecursionError):
                sys.exit(f'error: {option_string} {text}: brackets are not closed; '
                         'expected key="[a,b]" or key="[(a,b),(c,d)]", no spaces.')


def tool_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the parser of a tool that reads a config.

    Args:
        description (str, optional): What the tool does, with examples: its
            ``__doc__``.

    Returns:
        ArgumentParser: With ``--mini``, ``--num-classes`` and ``--cfg-options``, as in
        :func:`~mm_efficient.runs.configs.load_config`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--mini', action='store_true',
        help='use the miniature data set, generated in data/mini/ on first use, with '
        'image size and schedule cut to a few minutes of training on two CPU cores')
    parser.add_argument('--num-classes', type=int, metavar='N',
                        help='number of classes of every head')
    parser.add_argument(
        '--cfg-options', nargs='+', action=OptionsAction, metavar='KEY=VALUE',
        help='override settings of the config: train_cfg.max_epochs=1 key="[a,b]" '
        'key="[(a,b),(c,d)]" (no spaces)')
    return parser


def data_parser(description: str | None) -> argparse.ArgumentParser:
    """Make the parser of a tool that reads the data of a config.

    Args:
        description (str, optional): See :func:`tool_parser`.

    Returns:
        ArgumentParser: With ``--data-root`` and ``--classes`` as well.
    """
    parser = tool_parser(description)
    parser.add_argument(
        '--data-root', metavar='FOLDER',
        help='folder to read all data sets from, with the layout the config expects')
    parser.add_argument(
        '--classes', nargs='+', metavar='NAME',
        help='names of the classes; of label maps in the order of their values, the '
        'background included (default: the categories of a COCO file, the names of '
        "the class folders, else the config's)")
    return parser


def add_backbone_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of tools that can make the backbone faster.

    Args:
        parser (ArgumentParser): Extended by ``--compile`` and ``--channels-last``.
    """
    parser.add_argument(
        '--compile', action='store_true',
        help='compile the backbone with torch.compile, for all image sizes; the first '
        'iteration takes up to minutes longer')
    parser.add_argument(
        '--channels-last', action='store_true',
        help='run the backbone in the memory format channels last')


def parse_launched(parser: argparse.ArgumentParser, argv: list[str] | None
                   ) -> argparse.Namespace:
    """Parse the arguments of a tool that several processes may run.

    Args:
        parser (ArgumentParser): Extended by ``--launcher`` and ``--local_rank``, which
            launchers set.
        argv (list[str], optional): Arguments; None for those of the command line.

    Returns:
        Namespace: The arguments. ``LOCAL_RANK`` is in the environment.
    """
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none',
        help='what starts the processes, see tools/dist_train.sh (default: '
        'none, a single process)')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0,
                        help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    return args
