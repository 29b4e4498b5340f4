"""Label maps of one's own classes: which pixel values stand for which class."""
import logging
import os.path as osp
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from mmengine.config import Config
from mmengine.fileio import list_dir_or_file
from mmengine.logging import print_log
from PIL import Image

from ..errors import InputError
from ..files import IMAGE_SUFFIXES, is_local, join_root
from ..weights.matching import list_some
from .traversal import split_datasets

IGNORED = 255  # value of pixels without a class
MOST_MAPS = 1000  # label maps to look at


@dataclass(frozen=True)
class LabelFormat:
    """How the label maps of a data set are stored.

    Args:
        reduce_zero_label (bool): Whether 0 means "no class" and the first class is 1.
        img_suffix (str): Suffix of images.
        seg_map_suffix (str): Suffix of label maps.
    """

    reduce_zero_label: bool
    img_suffix: str
    seg_map_suffix: str


def find_label_format(cfg: Config, splits: Iterable[str],
                      classes: Sequence[str],
                      stored: bool | None = None) -> LabelFormat | None:
    """Find out from the label maps of a run how they are stored.

    If no value exceeds ``len(classes) - 1``, 0 is the first class. If the largest is
    ``len(classes)``, classes count from 1 and 0 means "no class". At most
    ``MOST_MAPS`` maps, evenly spaced, are looked at.

    Args:
        cfg (Config): Config of a segmentor.
        splits (Iterable[str]): Any of 'train', 'val' and 'test'.
        classes (Sequence[str]): Names of the classes.
        stored (bool, optional): ``reduce_zero_label`` of the training, if known: the
            values of a test set alone may leave it open. Defaults to None.

    Returns:
        LabelFormat | None: None if there are no label maps on this machine.

    Raises:
        InputError: If a label map is not an image of labels, or has a value that is
            no class.
    """
    datasets = [dataset for split in splits for dataset in split_datasets(cfg, split)]
    folders = [_folders(dataset) for dataset in datasets]
    suffixes = [_suffixes(images, maps, dataset)
                for (images, maps), dataset in zip(folders, datasets)]
    files = [osp.join(maps, name) for (_, maps), (_, suffix) in zip(folders, suffixes)
             for name in _names(maps) if name.endswith(suffix)]
    if not files:
        return None
    if len(set(suffixes)) > 1:
        raise InputError(f'{list_some(images for images, _ in folders)} have images or '
                         f'label maps with different suffixes: {suffixes}. Use one '
                         'suffix for all images, and one for all label maps.')
    counts = _count_labels(files[::-(-len(files) // MOST_MAPS)], len(classes))
    reduce_zero_label = len(classes) in counts if stored is None else stored
    if len(classes) in counts and not reduce_zero_label:
        raise InputError(
            f'The label maps have the value {len(classes)}, but with '
            f'reduce_zero_label=False the {len(classes)} classes are 0 to '
            f'{len(classes) - 1}.')
    _report(counts, classes, reduce_zero_label)
    return LabelFormat(reduce_zero_label, *suffixes[0])


def _folders(dataset: dict) -> tuple[str, str]:
    """Folders of images and label maps, '' if unknown or not on this machine."""
    prefix, root = dataset.get('data_prefix') or {}, dataset.get('data_root') or ''
    images, maps = (
        path if is_local(path) and osp.isdir(path) else ''
        for path in (join_root(root, prefix.get(key) or '')
                     for key in ('img_path', 'seg_map_path')))
    return images, maps


def _names(folder: str) -> list[str]:
    """Paths of the files of a folder, relative to it, as MMSegmentation lists them."""
    return sorted(list_dir_or_file(folder, list_dir=False, recursive=True))


def _suffixes(images: str, maps: str, dataset: dict) -> tuple[str, str]:
    """Suffixes of the config if there are such files, else those that are there."""
    found = []
    for folder, key, default in ((images, 'img_suffix', '.jpg'),
                                 (maps, 'seg_map_suffix', '.png')):
        suffix, names = dataset.get(key, default), _names(folder) if folder else []
        kinds = Counter(osp.splitext(name)[1] for name in names
                        if osp.splitext(name)[1].lower() in IMAGE_SUFFIXES)
        if kinds and not any(name.endswith(suffix) for name in names):
            suffix = kinds.most_common(1)[0][0]
        found.append(suffix)
    return found[0], found[1]


def _count_labels(files: Sequence[str], num_classes: int) -> Counter:
    """Count pixels by value."""
    counts: Counter = Counter()
    for path in files:
        try:
            with Image.open(path) as image:
                labels = np.asarray(image)
        except OSError as error:
            raise InputError(f'{path} cannot be read as a label map: '
                             f'{error}.') from None
        if labels.ndim != 2 or labels.dtype.kind not in 'bui':
            raise InputError(
                f'{path} is not a label map: expected one integer for every pixel, '
                f'its class, got {labels.shape[2:] or 1} values of {labels.dtype}. '
                'Save it as a grey or palette PNG.')
        values, numbers = np.unique(labels, return_counts=True)
        wrong = [int(v) for v in values if v > num_classes and v != IGNORED or v < 0]
        if wrong:
            raise InputError(
                f'{path} has the values {list_some(wrong, 5)}, but there are '
                f'{num_classes} classes: expected 0 to {num_classes - 1}, or 1 to '
                f'{num_classes} with 0 for no class, and {IGNORED} for pixels to '
                'ignore. Name all classes, the background included.')
        counts.update(dict(zip(values.tolist(), numbers.tolist())))
    return counts


def _report(counts: Counter, classes: Sequence[str], reduce_zero_label: bool) -> None:
    first = int(reduce_zero_label)
    print_log(
        f'Label maps: values {first} to {len(classes) - 1 + first} are '
        f'{list_some(classes)}; '
        + ('0 is no class and is ignored (reduce_zero_label=True)'
           if reduce_zero_label else
           f'0 is the class {classes[0]!r} (reduce_zero_label=False)'),
        logger='current')
    absent = [f'{name} ({value})' for value, name in enumerate(classes, first)
              if not counts[value]]
    if len(absent) >= len(classes) - 1:
        raise InputError(
            f'The label maps have the values {list_some(sorted(counts))} only, so '
            f'there is nothing to tell apart: expected {list_some(classes)} as '
            f'{first}, {first + 1}, ... ({IGNORED} is ignored).')
    if absent:
        print_log(f'Label maps: no pixel of {list_some(absent)}', logger='current',
                  level=logging.WARNING)
