"""The classes of a run: those of its data, its heads and its checkpoint agree."""
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from mmengine.config import Config
from mmengine.logging import print_log

from ..errors import InputError
from ..weights.matching import list_some
from .classes import (
    check_class_folders,
    head_classes,
    name_class_folders,
    set_class_names,
    set_num_classes,
)
from .coco import (
    check_categories,
    class_names,
    coco_files,
    own_categories,
    reads_coco,
)
from .coco_entries import check_coco_entries
from .data_checks import check_data
from .image_checks import check_images
from .label_maps import LabelFormat, find_label_format
from .mini import generate_mini_data
from .traversal import SPLITS, inner_model, split_datasets, type_name

# Their heads have one output per class; those of SAN and depth estimators do not
SEGMENTORS = ('EncoderDecoder', 'CascadeEncoderDecoder')


@dataclass(frozen=True)
class FoundClasses:
    """What the data of a run say about its classes.

    Args:
        names (list[str] | None): In the order of the labels. None: as the config says.
        label_format (LabelFormat | None): Of the label maps of own classes.
        replace (bool): Whether the heads take the number of ``names``.
    """

    names: list[str] | None = None
    label_format: LabelFormat | None = None
    replace: bool = False


def check_splits(cfg: Config, splits: Sequence[str], mini: bool = False,
                 classes: Sequence[str] | None = None, num_classes: int | None = None,
                 trained: dict | None = None) -> FoundClasses:
    """Check the data of several splits, and find their classes.

    Args:
        cfg (Config): See :func:`find_classes`.
        splits (Sequence[str]): Any of 'train', 'val' and 'test'.
        mini (bool): Whether to generate the miniature data set first, unless it is
            there already. Defaults to False.
        classes (Sequence[str], optional): See :func:`find_classes`.
        num_classes (int, optional): See :func:`find_classes`.
        trained (dict, optional): See :func:`find_classes`.

    Returns:
        FoundClasses: For :func:`use_classes` in the other processes.

    Raises:
        InputError: If data are missing or of the wrong kind, the miniature data set
            cannot be written, or data, heads or checkpoint contradict each other.
    """
    if mini:
        generate_mini_data(cfg.default_scope)
    for split in splits:
        check_data(cfg, split)
    found = find_classes(cfg, splits, classes, num_classes, trained)
    for split in splits:
        check_coco_entries(cfg, split)
        check_images(cfg, split)
    return found


def find_classes(cfg: Config, splits: Sequence[str],
                 classes: Sequence[str] | None = None, num_classes: int | None = None,
                 trained: dict | None = None) -> FoundClasses:
    """Find the classes of a run in its data, and check that all of them agree.

    Args:
        cfg (Config): From :func:`~mm_efficient.runs.load_config` with the same
            ``classes`` and ``num_classes``. Changed in place by :func:`use_classes`.
        splits (Sequence[str]): The data read, any of 'train', 'val' and 'test'.
        classes (Sequence[str], optional): Names the user gave. Defaults to None.
        num_classes (int, optional): Number the user gave. Defaults to None.
        trained (dict, optional): ``dataset_meta`` of the checkpoint to test.
            Defaults to None.

    Returns:
        FoundClasses: For :func:`use_classes` in the other processes.

    Raises:
        InputError: If data, heads or checkpoint contradict each other.
    """
    datasets = [dataset for split in splits for dataset in split_datasets(cfg, split)]
    found = FoundClasses()
    if cfg.default_scope == 'mmpretrain':
        found = FoundClasses(check_class_folders(cfg, splits, classes) or None)
    elif cfg.default_scope == 'mmdet':
        found = _find_categories(cfg, splits, num_classes)
    elif cfg.default_scope == 'mmseg' and datasets and (classes or num_classes):
        names = list(class_names(cfg, datasets[0]) or ())
        stored = datasets[0].get(
            'reduce_zero_label', (trained or {}).get('reduce_zero_label'))
        found = FoundClasses(
            label_format=find_label_format(cfg, splits, names, stored))
    use_classes(cfg, splits, found)
    for dataset in datasets:
        if cfg.default_scope == 'mmseg' or reads_coco(cfg, dataset):
            _check_head(cfg, dataset)
        _check_trained(cfg, dataset, trained)
    return found


def use_classes(cfg: Config, splits: Sequence[str], found: FoundClasses) -> None:
    """Write the classes that the data have into a config.

    Args:
        cfg (Config): Changed in place.
        splits (Sequence[str]): As of :func:`find_classes`.
        found (FoundClasses): From :func:`find_classes`.
    """
    if found.names and cfg.default_scope == 'mmpretrain':
        name_class_folders(cfg, splits, found.names)
        return
    if found.names and found.replace:
        set_num_classes(cfg, len(found.names))
    for split in SPLITS:
        for dataset in split_datasets(cfg, split):
            if found.names:
                set_class_names(cfg, dataset, found.names)
            if found.label_format:
                dataset.update(vars(found.label_format))


def _find_categories(cfg: Config, splits: Sequence[str],
                     num_classes: int | None) -> FoundClasses:
    """Classes of a detector: the categories of COCO files."""
    files = coco_files(cfg, splits)
    names = own_categories(cfg, splits)
    if names is not None:
        _, path = files[0]
        if num_classes not in (None, len(names)):
            raise InputError(
                f'--num-classes is {num_classes}, but {path} has {len(names)} '
                f'categories: {list_some(names)}. Leave it out, or choose some of them '
                'with --classes.')
        use_classes(cfg, splits, FoundClasses(names, replace=True))
        print_log(f'The classes are the {len(names)} categories of {path}: '
                  f'{list_some(names, 100)}', logger='current')
    order = check_categories(cfg, splits)
    if order is None:
        return FoundClasses()
    wanted = class_names(cfg, files[0][0])
    if list(wanted or ()) != order:
        print_log('Labels follow the order of the annotation file: '
                  f'{list_some(order, 100)}', logger='current')
        return FoundClasses(order)
    return FoundClasses(order, replace=True) if names is not None else FoundClasses()


def _check_head(cfg: Config, dataset: dict) -> None:
    """Compare the number of classes of a model and a data set."""
    names, expected = class_names(cfg, dataset), head_classes(cfg.model)
    if not names or expected is None or expected == len(names):
        return
    text = (f'The model has {expected} classes, but {type_name(dataset)} has '
            f'{len(names)}: {list_some(names)}.')
    if cfg.default_scope == 'mmseg':
        if type_name(inner_model(cfg.model)) in SEGMENTORS:
            raise InputError(f'{text} Name those of your data: --classes NAME NAME ...')
    elif expected < len(names):
        raise InputError(f'{text} Leave --num-classes out, or name the classes to use: '
                         '--classes NAME ...')
    else:
        print_log(f'{text} The others get no samples.', logger='current',
                  level=logging.WARNING)


def _check_trained(cfg: Config, dataset: dict, trained: dict | None) -> None:
    """Compare the names of the data with those in a checkpoint."""
    before = list((trained or {}).get('classes') or ())
    now = list(class_names(cfg, dataset) or ())
    if not before or not now or before == now:
        return
    if sorted(before) == sorted(now):
        raise InputError(
            f'The checkpoint was trained with the classes {list_some(before)}, but the '
            f'data have them in the order {list_some(now)}: labels would be exchanged. '
            'Sort the categories of the annotation file, or --classes, like those of '
            'the checkpoint.')
    print_log(f'The checkpoint was trained with the classes {list_some(before)}; the '
              f'data have {list_some(now)}', logger='current', level=logging.WARNING)
