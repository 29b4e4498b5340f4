"""Writing a swapped config as a few lines on top of the stock one."""
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from .draft import Change

LINE = 88  # characters
_ORDER = ('custom_imports', 'model')  # what comes first in the file
# Comments above settings, by their first key
_COMMENTS = {
    'param_scheduler': 'Learning rates in the schedule follow that of the optimizer',
    'custom_hooks': "The last one fits EcoFormer's hash functions if the weights have "
                    'none',
    'sync_bn': 'Few images per GPU: batch statistics over all GPUs',
    'load_from': 'The weights there are those of the stock model',
}


def config_text(base: str, overrides: Mapping, title: str,
                comments: Mapping[str, str]) -> str:
    """Write a config.

    Args:
        base (str): What it starts from, as in ``_base_``.
        overrides (Mapping): What differs.
        title (str): First line of the comment at the top.
        comments (Mapping[str, str]): More comments by key.

    Returns:
        str: Python source.
    """
    lines = [f'# {title}', f'_base_ = {base!r}']
    for key in sorted(overrides, key=lambda key: (
            _ORDER.index(key) if key in _ORDER else len(_ORDER))):
        comment = {**_COMMENTS, **comments}.get(key)
        lines += ['', f'# {comment}'] if comment else ['']
        lines += [f'{key} = {_source(overrides[key], len(key) + 3)}']
    return '\n'.join(lines) + '\n'


def _source(value: Any, used: int, indent: int = 0) -> str:
    """Write a value as Python, on one line if it fits.

    Args:
        value (Any): Of plain Python, as configs have it.
        used (int): Characters before it on its line, and a comma after it.
        indent (int): Spaces before that line. Defaults to 0.

    Returns:
        str: The source.
    """
    flat = _join(value, [_source(item, -LINE) for item in _items(value)], ', ')
    if used + indent + len(flat) <= LINE or not _items(value):
        return flat
    names = value if isinstance(value, dict) else [''] * len(value)
    inside = '\n' + ' ' * (indent + 4)
    return _join(value, [_source(item, len(str(name)) + 2, indent + 4)
                         for name, item in zip(names, _items(value))],
                 f',{inside}', inside)


def _items(value: Any) -> list:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []


def _join(value: Any, items: Sequence[str], comma: str, start: str = '') -> str:
    if isinstance(value, dict):
        if all(str(key).isidentifier() for key in value):
            pairs = [f'{key}={item}' for key, item in zip(value, items)]
            return f'dict({start}{comma.join(pairs)})'
        pairs = [f'{key!r}: {item}' for key, item in zip(value, items)]
        return f'{{{start}{comma.join(pairs)}}}'
    if isinstance(value, list):
        return f'[{start}{comma.join(items)}]'
    if isinstance(value, tuple):
        return f'({start}{comma.join(items)}{"," if len(items) == 1 else ""})'
    return repr(value)


def base_of(config: str, out: str | Path) -> str:
    """Write the name of a config as a base of another.

    Args:
        config (str): A path, or a name such as 'mmdet::retinanet/...'.
        out (str | Path): The other config.

    Returns:
        str: The name, or the path from the folder of ``out``.
    """
    if '::' in config:
        return config
    path = os.path.relpath(config, Path(out).resolve().parent)
    return Path(path).as_posix()


def change_table(changes: Sequence[Change]) -> Table:
    """Make the table of what was changed and why."""
    table = Table()
    for title in ('setting', 'before', 'after', 'why'):
        table.add_column(title, overflow='fold')
    for change in changes:
        table.add_row(*(text.replace('[', r'\[') for text in change))
    return table
