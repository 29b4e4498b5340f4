"""Checks of a run's data, before anything is built or written.

Every check raises :class:`InputError` with what was expected, what was given and the
next step.
"""
import inspect
import os.path as osp
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import InputError, short
from ..files import is_local, join_root
from .classes import FOLDER_DATASETS, head_classes
from .coco import check_coco_file, coco_files, dataset_class, needs_annotations
from .traversal import as_list, split_datasets, split_metrics, type_name

DATA_HELP = dict(
    mmpretrain='ImageNet-1K (train/<class>/*.JPEG and val/<class>/*.JPEG) from '
    'https://www.image-net.org',
    mmdet='COCO 2017 (train2017.zip, val2017.zip, annotations_trainval2017.zip)'
    ' from https://cocodataset.org/#download',
    mmseg='ADE20K (ADEChallengeData2016.zip) from '
    'http://sceneparsing.csail.mit.edu')

# Arguments that metrics, of one class or all, would refuse after the evaluation
CHOICES = (('iou_metrics', 'IoUMetric', ('mIoU', 'mDice', 'mFscore')),
           ('metric_items', 'CocoMetric', (
               'mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', 'AR@100', 'AR@300',
               'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000')),
           ('collect_device', '', ('cpu', 'gpu', 'npu')))


def check_data(cfg: Config, split: str) -> None:
    """Check that the files of a split exist and are of the right kind.

    Files of other machines, and data sets that download themselves, are left alone.

    Args:
        cfg (Config): Config of the run.
        split (str): 'train', 'val' or 'test'.

    Raises:
        InputError: If a folder or annotation file is missing, or an annotation
            file is not COCO json where it must be.
    """
    for dataset in split_datasets(cfg, split):
        for path in _expected_paths(cfg, dataset):
            if is_local(path) and path and not osp.exists(path):
                raise InputError(_missing_data(cfg, split, path))
        _check_label_list(cfg, dataset, split)
    for _, path in coco_files(cfg, [split]):
        check_coco_file(path, needs_annotations(cfg, split))
    if split_datasets(cfg, split):
        _check_metrics(cfg, split)


def _expected_paths(cfg: Config, dataset: dict) -> list[str]:
    """Paths that a data set reads from, if they have to be on this machine."""
    backend = (dataset.get('backend_args') or {}).get('backend', 'local')
    kind = dataset_class(cfg, dataset)
    downloads = kind and dataset.get('download', True) and \
        'download' in inspect.signature(kind).parameters
    if backend != 'local' or downloads:
        return []
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or ''
    if not prefix and type_name(dataset) == 'ImageNet':
        prefix = dataset.get('split') or ''
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    paths = [*prefixes, *as_list(dataset.get('ann_file') or None)]
    return [join_root(root, path) for path in paths if isinstance(path, str)]


def _check_label_list(cfg: Config, dataset: dict, split: str) -> None:
    """Check the lines "image label" of a list of MMPretrain."""
    if type_name(dataset) not in FOLDER_DATASETS or dataset.get('split') == 'test' \
            or not dataset.get('with_label', True):
        return
    path = join_root(dataset.get('data_root') or '',
                     dataset.get('ann_file') or f'meta/{dataset.get("split")}.txt')
    if not osp.isfile(path):
        return
    count = head_classes(cfg.model) if split == 'train' else None
    number = 0
    try:
        with open(path, encoding='utf-8') as file:
            for number, line in enumerate(file, 1):
                _, text = line.strip().rsplit(' ', 1)
                label = int(text)
                if count and not 0 <= label < count:
                    raise InputError(
                        f'{path}, line {number}, has the label {label}, but the '
                        f'{count} classes of the model are 0 to {count - 1}. Correct '
                        'the labels, or set the number of classes: --num-classes N')
    except InputError:
        raise
    except ValueError as error:
        raise InputError(
            f'{path}, line {number + isinstance(error, UnicodeDecodeError)}, cannot be '
            'read: expected an image, a blank and the number of its class, such as '
            f'"a/b.jpg 3" ({error}). Correct or remove it.') from None


def _check_metrics(cfg: Config, split: str) -> None:
    for metric in split_metrics(cfg, split):
        if not isinstance(metric, dict):
            continue
        if type_name(metric) == 'Accuracy' and metric.get('topk') is not None:
            _check_topk(metric['topk'], split, head_classes(cfg.model))
        for key, kind, choices in CHOICES:
            wrong = [value for value in as_list(metric.get(key))
                     if kind in ('', type_name(metric)) and value not in choices]
            if wrong:
                raise InputError(f'{split}_evaluator.{key} has {wrong[0]!r}; expected '
                                 f'one of {list(choices)}.')
        for path in as_list(metric.get('ann_file') or None):
            if is_local(path) and not osp.exists(path):
                raise InputError(
                    f'{path} does not exist; {split}_evaluator of the config reads it. '
                    'Pass --data-root FOLDER, which changes the paths of data sets '
                    f'and metrics, or set {split}_evaluator.ann_file.')


def _check_topk(topk: Any, split: str, count: int | None) -> None:
    wanted = as_list(topk)
    if not wanted or not all(isinstance(k, int) and k > 0 for k in wanted):
        raise InputError(f'{split}_evaluator.topk is {short(topk)}; expected a '
                         'positive integer, or several.')
    if count and max(wanted) > count:
        raise InputError(
            f'{split}_evaluator.topk asks for the first {max(wanted)} classes, but the '
            f'model has {count}. Set a smaller one, or the number of classes with '
            '--num-classes N, which corrects it.')


def _missing_data(cfg: Config, split: str, path: str) -> str:
    source = DATA_HELP.get(cfg.get('default_scope'), 'the data set')
    return (
        f'{path} does not exist; {split}_dataloader of the config reads from it '
        f'(current folder: {Path.cwd()}).\n'
        '  - to try the config on a small generated data set, add --mini\n'
        f'  - to train for real, get {source}\n'
        '  - if you have it elsewhere, add --data-root FOLDER')
