"""Annotation files in COCO format: their kind, categories and order."""
import contextlib
import difflib
import json
import logging
import mmap
import os.path as osp
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import DATASETS

from ..errors import InputError
from ..files import is_local, join_root
from ..weights.matching import list_some
from .traversal import as_list, split_datasets, split_metrics

EXPECTED = ('expected COCO json, an object with the lists "images", "annotations" and '
            '"categories"')
LARGEST_PARSED = 64 << 20  # bytes; larger files are searched, not parsed


def coco_files(cfg: Config, splits: Iterable[str]) -> list[tuple[dict, str]]:
    """List the COCO files on this machine that a run reads.

    Args:
        cfg (Config): Config of the run.
        splits (Iterable[str]): Any of 'train', 'val' and 'test'.

    Returns:
        list[tuple[dict, str]]: Config of the data set, and the path.
    """
    found = []
    for split in splits:
        for dataset in split_datasets(cfg, split):
            for path in as_list(dataset.get('ann_file')):
                path = join_root(dataset.get('data_root') or '', path)
                if is_local(path) and osp.isfile(path) and reads_coco(cfg, dataset):
                    found.append((dataset, path))
    return found


def reads_coco(cfg: Config, dataset: dict) -> bool:
    """Whether a data set is MMDetection's ``CocoDataset``, or reads files as it does.

    Args:
        cfg (Config): Config of the run.
        dataset (dict): Config of the data set.
    """
    kind: Any = dataset_class(cfg, dataset)
    if kind is None or not any(base.__name__ == 'CocoDataset' for base in kind.__mro__):
        return False
    from mmdet.datasets import CocoDataset
    return (issubclass(kind, CocoDataset) and kind.COCOAPI is CocoDataset.COCOAPI
            and kind.load_data_list is CocoDataset.load_data_list)


def dataset_class(cfg: Config, dataset: dict) -> type | None:
    """Class of a data set, None if it is not registered.

    Args:
        cfg (Config): Config of the run.
        dataset (dict): Config of the data set.
    """
    kind = dataset.get('type')
    if isinstance(kind, str):
        kind = DATASETS.get(kind if '.' in kind else f'{cfg.default_scope}.{kind}')
    return kind if isinstance(kind, type) else None


def class_names(cfg: Config, dataset: dict) -> Sequence[str] | None:
    """Class names of a data set: those of its config, else those of its class.

    Args:
        cfg (Config): Config of the run.
        dataset (dict): Config of the data set.

    Raises:
        InputError: If the config gives a single name in place of a list.
    """
    names = (dataset.get('metainfo') or {}).get('classes') or dataset.get('classes')
    if isinstance(names, (bool, int, float)):
        raise InputError(f'metainfo.classes is {names}; expected a list of names.')
    if isinstance(names, str) and not osp.isfile(names):
        raise InputError(f"metainfo.classes is the text {names!r}, of which every "
                         f"letter would be a class. Write a list: ['{names}'].")
    if names:
        return names if not isinstance(names, str) else None  # a file of names
    return getattr(dataset_class(cfg, dataset), 'METAINFO', {}).get('classes')


def check_coco_file(path: str, annotated: bool = True) -> None:
    """Check that a file is COCO json.

    Args:
        path (str): The annotation file.
        annotated (bool): Whether it must have annotations; test sets do not always
            have any. Defaults to True.

    Raises:
        InputError: If it is not.
    """
    try:
        if osp.getsize(path) > LARGEST_PARSED:
            with open(path, encoding='utf-8') as file:
                if not file.read(64).lstrip().startswith('{'):
                    raise ValueError('it does not start with "{"')
            return
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f'{path} is not an annotation file: {error}; '
                         f'{EXPECTED}.') from None
    keys = ('images', 'annotations', 'categories')
    for key in keys if annotated else keys[::2]:
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise InputError(f'{path} has no list {key!r}; {EXPECTED}.')
        if not all(isinstance(item, dict) for item in items):
            raise InputError(f'{path} has something other than objects in its list '
                             f'{key!r}; {EXPECTED}.')


def needs_annotations(cfg: Config, split: str) -> bool:
    """Whether a run learns or evaluates from the annotations of a split.

    Args:
        cfg (Config): Config of the run.
        split (str): 'train', 'val' or 'test'.
    """
    return split == 'train' or any(
        not metric.get('format_only') for metric in split_metrics(cfg, split))


@contextlib.contextmanager
def _mapped(path: str) -> Iterator[mmap.mmap]:
    with open(path, 'rb') as file, mmap.mmap(
            file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        yield content


def read_categories(path: str) -> dict[int, str]:
    """Read the categories of a COCO file of any size, without parsing all of it.

    Args:
        path (str): The annotation file.

    Returns:
        dict[int, str]: Names by id, in the order of the file. This is the order of
        MMDetection's labels, whatever the order of ``metainfo.classes``.

    Raises:
        InputError: If it has none, or two of one name.
    """
    with _mapped(path) as content:
        for match in re.finditer(rb'"categories"\s*:\s*(?=\[)', content):
            end = content.find(b']', match.end())
            while end >= 0:  # names may have brackets
                text = content[match.end():end + 1]
                with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
                    categories = json.loads(text)
                    break
                end = content.find(b']', end + 1)
            else:
                continue
            return _category_names(path, categories)
    raise InputError(f'{path} has no list \'categories\'; {EXPECTED}.')


def _category_names(path: str, categories: list) -> dict[int, str]:
    try:
        names = {category['id']: category['name'] for category in categories}
        numbers = Counter(names.values())
    except (KeyError, TypeError):
        raise InputError(f'{path} has categories without "id" or "name"; '
                         f'{EXPECTED}.') from None
    twice = [name for name, n in numbers.items() if n > 1]
    if twice or len(names) < len(categories):
        raise InputError(
            f'{path} has categories of the same {"name" if twice else "id"}'
            f'{": " + list_some(twice) if twice else ""}. Merge or rename them.')
    return names


def own_categories(cfg: Config, splits: Iterable[str]) -> list[str] | None:
    """Names of the categories of a run's files, if they are not those of the config.

    Args:
        cfg (Config): Config of the run.
        splits (Iterable[str]): Any of 'train', 'val' and 'test'.

    Returns:
        list[str] | None: Categories of the first file, in its order. None without a
        file, if the config names classes, or they are those of the data set's class.
    """
    for dataset, path in coco_files(cfg, splits):
        if (dataset.get('metainfo') or {}).get('classes'):
            return None
        names = list(read_categories(path).values())
        return names if set(names) != set(class_names(cfg, dataset) or ()) else None
    return None


def check_categories(cfg: Config, splits: Iterable[str]) -> list[str] | None:
    """Check that the files of a run have the classes of the config.

    Warns about the categories of a file that are not wanted.

    Args:
        cfg (Config): Config of the run.
        splits (Iterable[str]): Any of 'train', 'val' and 'test'.

    Returns:
        list[str] | None: The classes in the order of their labels, that of the files.
        None without a file.

    Raises:
        InputError: If classes are missing, or files have them in different order.
    """
    first: tuple[str, list[str]] | None = None
    for dataset, path in coco_files(cfg, splits):
        wanted = class_names(cfg, dataset)
        if not wanted:
            continue
        categories = read_categories(path)
        _check_wanted(path, list(wanted), list(categories.values()))
        order = [name for name in categories.values() if name in wanted]
        first = first or (path, order)
        if order != first[1]:
            raise InputError(
                f'{first[0]} and {path} have their categories in different order '
                f'({list_some(first[1], 4)} and {list_some(order, 4)}). MMDetection '
                'numbers classes by that order: sort one like the other.')
        _warn_of_unwanted(path, categories, set(wanted))
    return first and first[1]


def _check_wanted(path: str, wanted: Sequence[str], given: Sequence[str]) -> None:
    missing = [name for name in wanted if name not in given]
    if not missing:
        return
    texts = list(map(str, given))  # some files have numbers
    near = {name: difflib.get_close_matches(str(name), texts, 2, 0.5)
            for name in missing}
    hints = [f'{name!r}' + (f' (did you mean {" or ".join(map(repr, near[name]))}?)'
                            if near[name] else '') for name in missing]
    raise InputError(
        f'{path} lacks the categories {list_some(hints, 5)}; it has '
        f'{list_some(map(repr, given), 8)}. Name those to use with --classes. For a '
        'category without objects add an entry to its "categories".')


def _warn_of_unwanted(path: str, categories: dict[int, str], wanted: set[str]) -> None:
    unwanted = {str(key).encode(): name for key, name in categories.items()
                if name not in wanted}
    if not unwanted:
        return
    with _mapped(path) as content:
        found = Counter(re.findall(rb'"category_id"\s*:\s*(\d+)', content))
    counts = [f'{name} ({found[key]})' for key, name in unwanted.items()]
    print_log(
        f'{path}: {sum(found[key] for key in unwanted)} annotations of '
        f'{len(unwanted)} categories are not used: {list_some(counts, 8)}',
        logger='current', level=logging.WARNING)
