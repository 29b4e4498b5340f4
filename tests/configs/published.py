"""Published values from the tables of the pages, for the tests beside this file.

They are in docs/recipes.md and on the pages of families, docs/families/. A table is for
the last line ``Configs: `pattern`, ...`` before it. Its columns are the setting, the
keys of it, one per group of configs, and at most one of remarks.
"""
import functools
import math
import re
from collections import defaultdict
from fnmatch import fnmatch
from typing import Any, NamedTuple

from config_grid import CONFIGS, ON_DISK

DOCS = CONFIGS.parent / 'docs'
PAGES = [DOCS / 'recipes.md', *sorted(DOCS.glob('families/*.md'))]
LOADERS = dict(train_pipeline='train_dataloader.dataset.pipeline',
               test_pipeline='test_dataloader.dataset.pipeline')


class Published(NamedTuple):
    """One value: where the page has it, its key in a config, and the value."""
    where: str
    key: str
    value: Any
    shared: bool  # by all configs of the table


def lookup(config, key):
    """What a config has at a key, or None. Entries of lists are named by their type."""
    root, _, rest = key.partition('.')
    for name in f'{LOADERS.get(root, root)}.{rest}'.rstrip('.').split('.'):
        if isinstance(config, list) and name.isdigit():
            config = config[int(name)]
        elif isinstance(config, list):
            found = [entry for entry in config if entry['type'] == name]
            assert len(found) < 2, f'{key}: {name} is there {len(found)} times'
            config = found[0] if found else None
        else:
            config = (config or {}).get(name)
    return config


def read_value(text):
    """A number, product, word, list or tuple of the page; ``-`` is None."""
    if text == '-':
        return None
    known = {'x': '*', 'True': 'True', 'False': 'False'}
    code = re.sub(r'(?<![\w.])[A-Za-z_]\w*',
                  lambda word: known.get(word[0], repr(word[0])), text)
    return eval(code, {'__builtins__': {}})


def read_keys(cell):
    """Keys of a cell, those that begin with a dot completed by the one before."""
    keys = []
    for key in re.findall('`([^`]+)`', cell):
        keys.append(keys[-1].rpartition('.')[0] + key if key[0] == '.' else key)
    return keys


def configs_of(head, patterns):
    """Configs that a column is for: all, or those with a name of the head for ``*``."""
    names = re.findall('`([^`]+)`', head) or ['*']
    wanted = [pattern.replace('*', name, 1) for pattern in patterns for name in names]
    found = [config for config in ON_DISK
             if any(fnmatch(f'configs/{config}.py', pattern) for pattern in wanted)]
    assert found, f'no config is called {wanted}'
    return found


def read_row(cells, head, patterns, where):
    """The values of a row as pairs of a config and a value."""
    setting, keys = cells[0], read_keys(cells[1])
    for title, cell in zip(head[2:], cells[2:]):
        if title == 'ours' or not cell:
            continue
        parts = [read_value(part) for part in re.split(r',\s*(?![^(\[]*[)\]])', cell)]
        parts = parts * len(keys) if parts == [None] else parts
        assert len(parts) == len(keys), f'{where}: {len(keys)} keys: {cell}'
        for config in configs_of(title, patterns):
            for key, value in zip(keys, parts):
                yield config, Published(f'{where}: {setting}', key, value,
                                        title == 'published')


@functools.cache
def published():
    """Published values by config."""
    values = defaultdict(list)
    for page in PAGES:
        for config, value in read_page(page):
            values[config].append(value)
    return values


def read_page(page):
    """The values of a page's tables as pairs of a config and a value."""
    patterns, head = [], []
    for line, text in enumerate(page.read_text(encoding='utf-8').splitlines(), 1):
        if text.startswith('Configs: '):
            patterns = re.findall('`([^`]+)`', text)
        elif not text.startswith('|'):
            head = []
        elif not head:
            head = [cell.strip() for cell in text.strip('|').split('|')]
        elif 'in the config' in head and not set(text) <= set('|-'):
            cells = [cell.strip() for cell in text.strip('|').split('|')]
            yield from read_row(cells, head, patterns, f'{page.name}:{line}')


def is_same(value, wanted):
    """Whether a config has a published value, be it a list or a tuple."""
    if isinstance(wanted, (list, tuple)) and isinstance(value, (list, tuple)):
        return len(value) == len(wanted) and all(map(is_same, value, wanted))
    if {type(value), type(wanted)} <= {int, float}:
        return math.isclose(value, wanted, rel_tol=1e-9)
    return type(value) is type(wanted) and value == wanted


def unlike_published(name, config):
    """What is not as published in the config of this name, one line per value."""
    return [f'{row.where} (`{row.key}`): published {row.value!r}, here {found!r}'
            for row in published()[name]
            if not is_same(found := lookup(config, row.key), row.value)]
