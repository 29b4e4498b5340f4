"""Training on classes other than those of the config."""
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.config import Config

from ..errors import InputError, short
from ..files import join_root
from .traversal import (
    SPLITS,
    as_list,
    inner_model,
    nested_dicts,
    split_datasets,
    split_metrics,
    type_name,
)

IMAGENET_CLASSES = 1000
FOLDER_DATASETS = ('ImageNet', 'CustomDataset')  # of MMPretrain
HEADS = ('head', 'decode_head', 'bbox_head', 'mask_head', 'panoptic_head')


def head_classes(model: dict) -> int | None:
    """Number of classes that a model tells apart.

    Args:
        model (dict): Its config.

    Returns:
        int | None: Of its main head. None if no head has one, as those of an RPN, or
        it tells apart things and stuff.
    """
    inner = inner_model(model)
    heads = [node.get(key) for node in (inner.get('roi_head'), inner)
             for key in HEADS if isinstance(node, dict)]
    for node in nested_dicts([as_list(head)[-1:] for head in heads]):
        if 'num_classes' in node:
            return node['num_classes']
        if 'num_things_classes' in node:
            return None if node.get('num_stuff_classes') else node['num_things_classes']
    return None


def set_num_classes(cfg: Config, num_classes: int) -> None:
    """Set the number of classes of every head.

    Heads that solve another task, such as the boundaries of STDC, have a number of
    their own and keep it.

    Args:
        cfg (Config): Changed in place: every number of classes of the model and the
            metrics that is the one of the main head, equal weights of classes, and
            ``topk`` of metrics that ask for more classes than there are.
        num_classes (int): Number of classes.

    Raises:
        InputError: If it is not a positive integer, or the loss has weights for
            certain classes.
    """
    if not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(
            f'num_classes must be a positive integer, got {num_classes!r}.')
    before = head_classes(cfg.model)
    metrics = [metric for split in ('val', 'test')
               for metric in split_metrics(cfg, split)]
    for node in nested_dicts([cfg.model, cfg.get('data_preprocessor'), metrics]):
        for key in ('num_classes', 'num_things_classes'):
            if key in node and node[key] == before:
                node[key] = num_classes
        weights = node.get('class_weight')
        if before and isinstance(weights, (list, tuple)):
            node['class_weight'] = _resized(list(weights), before, num_classes)
    for metric in nested_dicts(metrics):
        if isinstance(metric.get('topk'), (list, tuple)):
            metric['topk'] = tuple(k for k in metric['topk'] if k <= num_classes)


def _resized(weights: list[float], before: int, after: int) -> list[float]:
    """Weights of classes, and perhaps of the background, for another number."""
    if len(weights) not in (before, before + 1) or before == after:
        return weights
    if len(set(weights[:before])) > 1:
        raise InputError(
            f'class_weight of a loss has a weight for each of {before} classes, but '
            f'there are {after}. Set weights for these, or class_weight=None.')
    return weights[:1] * after + weights[before:]


def set_classes(cfg: Config, classes: Sequence[str]) -> None:
    """Set the classes of every head and data set.

    Args:
        cfg (Config): Changed in place, see :func:`set_class_names` for the data sets.
        classes (Sequence[str]): Their names, in the order of the labels.

    Raises:
        InputError: If they are not different names, or too few.
    """
    if isinstance(classes, str) or not all(isinstance(name, str) for name in classes):
        raise InputError(f'classes must be a list of names, got {classes!r}.')
    if len(set(classes)) < len(classes) or not classes:
        raise InputError('classes must be different names, at least one; got '
                         f'{list(classes)}.')
    if cfg.default_scope == 'mmseg' and len(classes) < 2:
        raise InputError(
            'A segmentor tells at least two classes apart. Name the background too: '
            f'--classes background {classes[0]}')
    set_num_classes(cfg, len(classes))
    folders = [id(dataset) for _, dataset in _folder_datasets(cfg, SPLITS)]
    for split in SPLITS:  # folders are named later, in the order of their labels
        for dataset in split_datasets(cfg, split):
            if id(dataset) not in folders:
                set_class_names(cfg, dataset, classes)


def set_class_names(cfg: Config, dataset: dict, names: Sequence[str]) -> None:
    """Name the classes of a data set.

    Args:
        cfg (Config): Config of the run.
        dataset (dict): Config of one of its data sets, changed in place. In
            segmentation it becomes a ``BaseSegDataset``: ADE20K and the like accept
            no names but their own.
        names (Sequence[str]): In the order of the labels.
    """
    if 'classes' in dataset:
        dataset['classes'] = list(names)
    metainfo = {**(dataset.get('metainfo') or {}), 'classes': list(names)}
    if len(metainfo.get('palette') or ()) < len(names):
        metainfo.pop('palette', None)
    dataset['metainfo'] = metainfo
    if cfg.default_scope == 'mmseg':
        dataset['type'] = 'BaseSegDataset'


def check_class_folders(cfg: Config, splits: Sequence[str],
                        classes: Sequence[str] | None = None) -> list[str]:
    """Check the class folders of data in ImageNet's layout.

    Args:
        cfg (Config): Config of a run, not changed.
        splits (Sequence[str]): Any of 'train', 'val' and 'test'.
        classes (Sequence[str], optional): The names that the folders must have, in any
            order. Defaults to None, any.

    Returns:
        list[str]: Names of the folders, in the order of the labels. Empty if no
        split takes its labels from folders.

    Raises:
        InputError: If the number of folders differs from the model's
            ``num_classes``, the folders have other names than ``classes``, or they
            differ between splits: labels are their alphabetical ranks.
    """
    first: tuple[Path, list[str]] | None = None
    for folder, dataset in _folder_datasets(cfg, splits):
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        if classes and set(names) != set(classes):
            raise InputError(
                f'{folder} has the folders {names[:8]}, but --classes are '
                f'{list(classes)[:8]}; expected one folder of that name for each.')
        first = first or (folder, names)
        if names != first[1]:
            differing = sorted(set(names) ^ set(first[1]))
            raise InputError(
                f'{first[0]} and {folder} must have the same class folders, but '
                f'{differing[:4]} are in one of them only{_not_classes(folder, names)}'
                '. Add the missing ones; they may be empty.')
        _check_number(folder, names, cfg.model, type_name(dataset))
    return first[1] if first else []


def name_class_folders(cfg: Config, splits: Sequence[str],
                       names: Sequence[str]) -> None:
    """Name classes after their folders.

    Args:
        cfg (Config): Changed in place, except where it names the classes itself or
            the folders are the 1000 of ImageNet, which has readable names.
        splits (Sequence[str]): Any of 'train', 'val' and 'test'.
        names (Sequence[str]): From :func:`check_class_folders`.
    """
    if len(names) == IMAGENET_CLASSES and all(
            re.fullmatch(r'n\d{8}', name) for name in names):
        return
    for _, dataset in _folder_datasets(cfg, splits):
        if not (dataset.get('metainfo') or {}).get('classes') \
                and not dataset.get('classes'):
            set_class_names(cfg, dataset, names)


def _check_number(folder: Path, names: Sequence[str], model: dict, dataset: str
                  ) -> None:
    found = len(names)
    expected = head_classes(model) or found
    # CustomDataset also serves a model with more classes
    if found and (found <= expected and dataset != 'ImageNet' or found == expected):
        return
    unusual = _not_classes(folder, names)
    raise InputError(
        f'{folder} has {found} class folders{unusual}, but the model has '
        f'num_classes={expected}.' + ('' if unusual else (
            f'\n  - to train on the classes of these folders, add --num-classes {found}'
            '\n  - otherwise the data set is incomplete')))


def _not_classes(folder: Path, names: Sequence[str]) -> str:
    """What is wrong with class folders, as part of a sentence."""
    hidden = [name for name in names if name.startswith(('.', '__'))]
    if hidden:
        return (f' with {hidden}, which MMPretrain counts as classes (remove what is '
                'no class)')
    if not names:
        return ': sort its images into one folder for each class, as in train/'
    return ''


def _folder_datasets(cfg: Config, splits: Sequence[str]
                     ) -> Iterator[tuple[Path, dict]]:
    """Data sets that take their labels from folders, with the parent folder."""
    for split in splits:
        for dataset in split_datasets(cfg, split):
            if type_name(dataset) not in FOLDER_DATASETS:
                continue
            root = dataset.get('data_root') or ''
            prefix = dataset.get('data_prefix') or dataset.get('split') or ''
            if isinstance(prefix, dict):
                prefix = prefix.get('img_path') or ''
            if not isinstance(prefix, str):
                raise InputError(f'{split}_dataloader.dataset.data_prefix is '
                                 f'{short(prefix)}; expected a path.')
            folder = Path(join_root(root, prefix))
            listed = Path(root, 'meta', f'{dataset.get("split")}.txt').exists() \
                or dataset.get('ann_file')
            labelled = dataset.get('split') != 'test' \
                and dataset.get('with_label', True)
            if labelled and not listed and folder.is_dir():
                yield folder, dataset
