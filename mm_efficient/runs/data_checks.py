"""Checks of a run's data, before anything is built or written.

Every check raises :class:`InputError` with what was expected, what was given and the
next step.
"""
import json
import os.path as osp
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config

from ..errors import InputError
from ..files import is_local, join_root
from .classes import check_class_folders
from .mini import generate_mini_data
from .traversal import split_datasets, split_metrics

DATA_HELP = dict(
    mmpretrain='ImageNet-1K (train/<class>/*.JPEG and val/<class>/*.JPEG) from '
    'https://www.image-net.org',
    mmdet='COCO 2017 (train2017.zip, val2017.zip, annotations_trainval2017.zip)'
    ' from https://cocodataset.org/#download',
    mmseg='ADE20K (ADEChallengeData2016.zip) from '
    'http://sceneparsing.csail.mit.edu')
LARGEST_PARSED = 64 << 20  # bytes; only the start of a larger annotation file is read


def check_splits(cfg: Config, splits: Sequence[str], mini: bool = False) -> list[str]:
    """Check the data of several splits, see :func:`check_data`.

    Args:
        cfg (Config): Config of the run, not changed.
        splits (Sequence[str]): Any of 'train', 'val' and 'test'.
        mini (bool): Whether to generate the miniature data set first, unless it is
            there already. Defaults to False.

    Returns:
        list[str]: Class names for :func:`~.classes.set_class_names`.

    Raises:
        InputError: If data are missing, of the wrong kind, or have other classes than
            the model, or the miniature data set cannot be written.
    """
    if mini:
        generate_mini_data(cfg.default_scope)
    for split in splits:
        check_data(cfg, split)
    return check_class_folders(cfg, splits)


def check_data(cfg: Config, split: str) -> None:
    """Check that the files of a split exist and are of the right kind.

    Args:
        cfg (Config): Config of the run.
        split (str): 'train', 'val' or 'test'.

    Raises:
        InputError: If a folder or annotation file is missing, or an annotation
            file is not COCO json where it must be.
    """
    for dataset in split_datasets(cfg, split):
        for path in _expected_paths(dataset):
            if is_local(path) and path and not osp.exists(path):
                raise InputError(_missing_data(cfg, split, path))
        ann_file = dataset.get('ann_file')
        if str(dataset.get('type')).endswith('CocoDataset') and ann_file:
            path = join_root(dataset.get('data_root') or '', ann_file)
            if is_local(path):
                check_coco_file(path, _class_names(dataset))
    if split_datasets(cfg, split):
        _check_metrics(cfg, split)


def _expected_paths(dataset: dict) -> list[str]:
    """Paths that a data set reads from."""
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    paths = [join_root(root, p) for p in prefixes if p is not None]
    ann_file = dataset.get('ann_file')
    return paths + ([join_root(root, ann_file)] if ann_file else [])


def _class_names(dataset: dict) -> Sequence[str] | None:
    """Class names that a ``CocoDataset`` or a subclass looks for, if known."""
    from mmdet.datasets import CocoDataset
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes or dataset['type'] not in ('CocoDataset', 'mmdet.CocoDataset'):
        return classes
    return CocoDataset.METAINFO['classes']


def _check_metrics(cfg: Config, split: str) -> None:
    for metric in split_metrics(cfg, split):
        path = metric.get('ann_file')
        if path and is_local(path) and not osp.exists(path):
            raise InputError(
                f'{path} does not exist; {split}_evaluator of the config reads '
                'it. Pass --data-root FOLDER, which changes the paths of data sets and '
                f'metrics, or set {split}_evaluator.ann_file.')


def _missing_data(cfg: Config, split: str, path: str) -> str:
    source = DATA_HELP.get(cfg.get('default_scope'), 'the data set')
    return (
        f'{path} does not exist; {split}_dataloader of the config reads from it '
        f'(current folder: {Path.cwd()}).\n'
        '  - to try the config on a small generated data set, add --mini\n'
        f'  - to train for real, get {source}\n'
        '  - if you have it elsewhere, add --data-root FOLDER')


def check_coco_file(path: str, classes: Sequence[str] | None = None) -> None:
    """Check that a file is COCO json and has at least one of the classes.

    Args:
        path (str): The annotation file.
        classes (Sequence[str], optional): Class names to look for. Defaults to None,
            any.

    Raises:
        InputError: If it is not, or has none of them.
    """
    expected = ('expected COCO json, an object with the lists "images", '
                '"annotations" and "categories"')
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
                         f'{expected}.') from None
    for key in ('images', 'annotations', 'categories'):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise InputError(f'{path} has no list {key!r}; {expected}.')
        if not all(isinstance(item, dict) for item in items):
            raise InputError(f'{path} has something other than objects in its list '
                             f'{key!r}; {expected}.')
    names = [category.get('name') for category in content['categories']]
    if classes and not set(classes) & set(names):
        raise InputError(
            f'{path} has none of the classes {list(classes)[:5]} of the '
            f'config; its categories are {names[:5]}. To train on your own, '
            f'add --num-classes {len(names)}, and with --cfg-options set '
            "metainfo.classes=\"('NAME','NAME')\" under "
            'train_dataloader.dataset., val_dataloader.dataset. and '
            'test_dataloader.dataset.')
