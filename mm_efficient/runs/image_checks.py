"""Checks of the image files and label maps of a run, by their headers where possible.

What looks wrong is loaded as the config says; only what fails there, too, is an error.
"""
import contextlib
import copy
import inspect
import io
import logging
import os.path as osp
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
from mmengine.config import Config
from mmengine.dataset import BaseDataset, Compose
from mmengine.fileio import list_dir_or_file
from mmengine.logging import print_log
from mmengine.registry import DATASETS, DefaultScope
from PIL import Image

from ..engine.bit_depth import CheckBitDepth
from ..errors import ExecutionError, InputError, one_line
from ..files import is_local
from .classes import head_classes
from .coco import LARGEST_PARSED, coco_files, dataset_class
from .traversal import (
    inner_model,
    nested_dicts,
    split_datasets,
    split_metrics,
    type_name,
)

Fault = tuple[str, str]  # file, and what is wrong with it
MOST_IMAGES = 5000  # headers to read before a run, of each split
MOST_MAPS = 200  # label maps to decode
IGNORED = 255
ORIENTATION = 0x0112  # in EXIF
ENDS = dict(JPEG=b'\xff\xd9', PNG=b'IEND')  # what the files of a format end with


def check_images(cfg: Config, split: str) -> None:
    """Check the images of a split that can be checked in seconds.

    All images of a validation or test set, at most ``MOST_IMAGES`` evenly spaced ones;
    of a training set, whose broken images are skipped, only that one can be read. Label
    maps have to fit their images and the number of classes.

    Args:
        cfg (Config): Config of the run, with its classes.
        split (str): 'train', 'val' or 'test'.

    Raises:
        InputError: With the name of the file.
    """
    for dataset in split_datasets(cfg, split):
        built = build_dataset(cfg, dataset, split)
        if built is not None:
            fault = next(image_faults(cfg, dataset, built, split), None)
            if fault:
                raise InputError(
                    f'{fault[0]} {fault[1]}. All such files of a data set are listed '
                    'by tools/analysis_tools/check_dataset.py CONFIG')
            if cfg.default_scope == 'mmdet':
                _warn_of_sizes(built)


def build_dataset(cfg: Config, settings: dict, split: str,
                  large: bool = False) -> BaseDataset | None:
    """Build a data set without its pipeline, to list its files.

    Args:
        cfg (Config): Config of the run.
        settings (dict): Config of the data set.
        split (str): 'train', 'val' or 'test'.
        large (bool): Whether to build data sets that take long: ImageNet's training
            set and the like, and large annotation files. Defaults to False.

    Returns:
        BaseDataset | None: None if it is not on this machine, or takes long.

    Raises:
        InputError: If it cannot be built, or is empty.
    """
    kind: Any = dataset_class(cfg, settings)
    backend = (settings.get('backend_args') or {}).get('backend', 'local')
    if kind is None or not issubclass(kind, BaseDataset) or backend != 'local' \
            or 'download' in inspect.signature(kind).parameters \
            or not is_local(settings.get('data_root') or ''):
        return None
    key = f'{split}_dataloader.dataset, {type_name(settings)} in {_place(settings)}'
    if not large and split == 'train' and cfg.default_scope == 'mmpretrain':
        if osp.isdir(_place(settings)) and not any(_files(_place(settings))):
            raise InputError(f'{key}, has no images.')
        return None
    if not large and any(osp.getsize(path) > LARGEST_PARSED for part, path
                         in coco_files(cfg, [split]) if part is settings):
        return None
    try:
        with DefaultScope.overwrite_default_scope(cfg.default_scope), \
                contextlib.redirect_stdout(io.StringIO()):
            built = DATASETS.build({**copy.deepcopy(settings), 'pipeline': []})
            built.full_init()
    except (InputError, ExecutionError):
        raise
    except Exception as error:
        reason = one_line(error) or 'an assertion'
        if 'need at least one array' in reason:  # of no samples
            raise InputError(f'{key}, has no images{_hint(settings)}.') from None
        raise InputError(f'{key}, cannot be read: {type(error).__name__}: '
                         f'{reason}') from error
    return built


def _files(folder: str) -> Iterator[str]:
    return list_dir_or_file(folder, list_dir=False, recursive=True)


def _place(settings: dict) -> str:
    prefix = settings.get('data_prefix') or settings.get('split') or ''
    if isinstance(prefix, dict):
        prefix = next(iter(prefix.values()), '')
    return osp.join(settings.get('data_root') or '', prefix or '.')


def _hint(settings: dict) -> str:
    """Which files are there, in place of those with the suffix of the config."""
    suffix, folder = settings.get('img_suffix'), _place(settings)
    if not osp.isdir(folder):
        return ''
    if type_name(settings) == 'CocoDataset':
        return ' with objects of its classes'
    found = sorted({osp.splitext(name)[1] for name in islice(_files(folder), 10000)})
    return f' named *{suffix or ".jpg"}; there are files {found[:5]}. Set img_suffix'


def image_faults(cfg: Config, settings: dict, dataset: BaseDataset, split: str,
                 everything: bool = False) -> Iterator[Fault]:
    """Find files that a run would fail on.

    Args:
        cfg (Config): Config of the run.
        settings (dict): Config of the data set.
        dataset (BaseDataset): From :func:`build_dataset`.
        split (str): 'train', 'val' or 'test'.
        everything (bool): Whether to look at all files. Defaults to False.

    Yields:
        tuple[str, str]: File and fault.
    """
    loaders = Loaders(cfg, settings)
    evaluated = split != 'train'
    if not evaluated and loaders.skips_broken and all(
            any(loaders.unreadable(info)) for info in spaced(dataset, len(dataset))):
        for path, fault in loaders.unreadable(dataset.get_data_info(0)):
            yield path, f'{fault}, like all {len(dataset)} training images'
    most = len(dataset) if everything else MOST_IMAGES
    for info in spaced(dataset, most if evaluated or not loaders.skips_broken else 0):
        yield from loaders.unreadable(info)
    most = most if everything or evaluated else MOST_MAPS
    for info in spaced(dataset, most):
        yield from loaders.too_deep(info)
        yield from loaders.map_faults(info, evaluated)


def _warn_of_sizes(dataset: BaseDataset) -> None:
    """Warn if images have another size than their entries in the annotation file."""
    found = []
    for info in spaced(dataset, MOST_MAPS):
        entry = info.get('width'), info.get('height')
        with contextlib.suppress(OSError, SyntaxError), \
                Image.open(info['img_path']) as image:
            turned = image.getexif().get(ORIENTATION, 1) > 4  # by a quarter
            size = image.size[::-1] if turned else image.size
            if None not in entry and size != entry:
                found.append(f'{info["img_path"]} ({size[0]} x {size[1]} pixels, entry '
                             f'{entry[0]} x {entry[1]})')
    if found:
        print_log(
            f'{len(found)} of {min(len(dataset), MOST_MAPS)} images do not have the '
            f'width and height of their entry, such as {found[0]}. Do their boxes fit? '
            'MMDetection turns images as their EXIF orientation says.',
            logger='current', level=logging.WARNING)


def spaced(dataset: BaseDataset, most: int) -> Iterator[dict]:
    """Information on at most ``most`` samples, evenly spaced."""
    for index in range(0, len(dataset) if most else 0,
                       -(-len(dataset) // max(most, 1))):
        yield dataset.get_data_info(index)


class Loaders:
    """The steps of a pipeline that read files.

    Args:
        cfg (Config): Config of the run.
        settings (dict): Config of the data set.
    """

    def __init__(self, cfg: Config, settings: dict) -> None:
        self.scope = cfg.default_scope
        steps = [step for step in settings.get('pipeline') or []
                 if isinstance(step, dict)]
        image = [step for step in steps if type_name(step) == 'LoadImageFromFile']
        maps = [step for step in nested_dicts(steps)
                if type_name(step) == 'LoadAnnotations']
        self.checks_depth = any(type_name(step) == 'CheckBitDepth' for step in steps)
        self.skips_broken = any(step.get('ignore_empty') for step in image)
        with DefaultScope.overwrite_default_scope(self.scope):
            self.image = Compose(copy.deepcopy(image)) if image else None
            self.maps = Compose(copy.deepcopy(image + maps)) if image and maps else None
            self.whole = copy.deepcopy(steps)
        self.num_classes = _limit(cfg)
        self.compares_sizes = any(
            type_name(metric) == 'IoUMetric' and not metric.get('format_only')
            for split in ('val', 'test') for metric in split_metrics(cfg, split))

    def too_deep(self, info: dict) -> Iterator[Fault]:
        """Find out whether the pipeline refuses an image for its bit depth.

        Args:
            info (dict): Information on a sample.

        Yields:
            tuple[str, str]: File and fault.
        """
        if self.checks_depth:
            try:
                CheckBitDepth().transform(info)
            except InputError as error:
                path = info['img_path']
                yield path, str(error).removeprefix(path).strip(' .')
            except OSError:  # cannot be read
                return

    def unreadable(self, info: dict, decode: bool = False) -> Iterator[Fault]:
        """Find out whether an image cannot be loaded.

        Args:
            info (dict): Information on a sample.
            decode (bool): Whether to read all of it. Defaults to False, its header,
                and all of a file that does not end as it should.

        Yields:
            tuple[str, str]: File and fault.
        """
        path = info.get('img_path')
        if self.image is None or not isinstance(path, str) or not is_local(path):
            return
        try:
            with Image.open(path) as image:
                if decode or not _is_whole(path, image.format):
                    image.load()
            return
        except Exception as error:
            reason = str(error)
        if not osp.exists(path):
            yield path, 'does not exist'
            return
        try:
            if self.image(copy.deepcopy(info)) is not None:
                return
        except Exception as error:
            reason = str(error) or reason
        size = osp.getsize(path) if osp.isfile(path) else 0
        yield path, f'cannot be read as an image ({size} bytes; {_line(reason)})'

    def map_faults(self, info: dict, evaluated: bool) -> Iterator[Fault]:
        """Find out whether a run would fail on a label map.

        Args:
            info (dict): Information on a sample.
            evaluated (bool): Whether it is evaluated, not trained on.

        Yields:
            tuple[str, str]: File and fault.
        """
        path = info.get('seg_map_path')
        if self.scope != 'mmseg' or self.maps is None or not isinstance(path, str) \
                or not is_local(path) or any(self.unreadable(info)):
            return
        if not osp.exists(path):
            yield path, f'does not exist; it is the label map of {info["img_path"]}'
            return
        if evaluated and self._sizes_agree(info):
            return
        try:
            loaded = self.maps(copy.deepcopy(info))
        except Exception as error:
            yield path, f'cannot be read as a label map ({_line(str(error))})'
            return
        fault = loaded and self._labels_fault(loaded, evaluated)
        if fault:
            yield path, fault

    def _sizes_agree(self, info: dict) -> bool:
        """Whether the headers say that a label map is grey and fits its image."""
        try:
            with Image.open(info['img_path']) as image, \
                    Image.open(info['seg_map_path']) as labels:
                return image.size == labels.size and labels.mode in ('L', 'P') \
                    and _is_whole(info['seg_map_path'], labels.format)
        except Exception:
            return False

    def _labels_fault(self, loaded: dict, evaluated: bool) -> str | None:
        labels, size = loaded['gt_seg_map'], tuple(loaded['ori_shape'])
        if labels.ndim != 2:
            return (f'is not a label map: it has {labels.shape[-1]} values for every '
                    'pixel, expected one. Save it as a grey or palette PNG')
        if labels.shape != size and (
                self.compares_sizes if evaluated else self._training_fails(loaded)):
            return (f'has {labels.shape[1]} x {labels.shape[0]} pixels, but its image '
                    f'{loaded["img_path"]} {size[1]} x {size[0]}')
        if evaluated or self.num_classes is None:
            return None
        wrong = np.setdiff1d(labels, [*range(self.num_classes), IGNORED])
        if len(wrong):
            shift = int(bool(loaded.get('reduce_zero_label')))
            values = ', '.join(str(value + shift) for value in wrong[:5])
            last = self.num_classes - 1 + shift
            return (f'has the values {values}, but the {self.num_classes} classes of '
                    f'the model are {shift} to {last} ({IGNORED} is ignored). Name the '
                    'classes of your data: --classes NAME NAME ...')
        return None

    def _training_fails(self, loaded: dict) -> bool:
        """Whether a label map of another size than its image fails in training."""
        info = {key: loaded[key] for key in ('img_path', 'seg_map_path', 'label_map',
                                             'reduce_zero_label')}
        try:
            with DefaultScope.overwrite_default_scope(self.scope):
                pipeline = Compose(copy.deepcopy(self.whole))
            for _ in range(3):
                sample = pipeline({**info, 'seg_fields': [], 'sample_idx': 0})
                if sample is not None and sample['inputs'].shape[-2:] != \
                        sample['data_samples'].gt_sem_seg.data.shape[-2:]:
                    return True
        except Exception:
            return True
        return False


def _is_whole(path: str, format: str | None) -> bool:
    """Whether the end of a file is that of its format; a cut-off file has none."""
    with open(path, 'rb') as file:
        file.seek(max(0, osp.getsize(path) - 64))
        return ENDS.get(format or '', b'') in file.read()


def _limit(cfg: Config) -> int | None:
    """Number of classes if labels beyond it fail in training, else None."""
    model = inner_model(cfg.model)
    heads = [model.get('decode_head'), model.get('auxiliary_head')]
    losses = [type_name(loss) for node in nested_dicts(heads)
              for key, loss in node.items() if key.startswith('loss')
              and isinstance(loss, dict)]
    ignores = [node['ignore_index'] for node in nested_dicts(heads)
               if 'ignore_index' in node]
    usual = set(losses) <= {'CrossEntropyLoss'} and set(ignores) <= {IGNORED}
    return head_classes(cfg.model) if usual else None


def _line(text: str) -> str:
    return one_line(text)[:120]
