"""Command-line options that tools have in common."""
import argparse

from mmengine.config import DictAction


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
    parser.add_argument('--mini', action='store_true',
                        help='change the config as --mini of tools/train.py does, for '
                        'the miniature data set and checkpoints trained on it')
    parser.add_argument('--num-classes', type=int, metavar='N',
                        help='number of classes of every head')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction,
                        metavar='KEY=VALUE', help='override settings of the config')
    return parser
