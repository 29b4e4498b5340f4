"""Entries of COCO files that MMDetection and its metric would fail on."""
import json
import logging
import os.path as osp
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from PIL import Image

from ..errors import InputError
from ..files import join_root
from ..weights.matching import list_some
from .coco import LARGEST_PARSED, class_names, coco_files
from .traversal import as_list, nested_dicts, split_metrics, type_name

Fault = tuple[str, str]  # entry, and what is wrong with it
Entry = Mapping[str, Any]
UNUSED = dict(images="are of no entry in 'images'",
              categories="are of no entry in 'categories'",
              boxes='have boxes of less than a pixel, or outside of their image,')


@dataclass
class CocoReader:
    """What a run reads of the entries of a file.

    Args:
        folder (str): Folder of the images.
        classes (Collection[str]): Names of the classes that are used; all if empty.
        masks (bool): Whether the pipeline reads masks.
        boxes (bool): Whether entries are evaluated by their boxes.
        evaluated_masks (bool): Whether they are evaluated by their masks.
        filtered (bool): Whether images are chosen by their size and objects.
        min_size (int): Images with a shorter side are not used.
        must_have_objects (bool): Whether images without objects are not used.
    """

    folder: str = ''
    classes: Collection[str] = ()
    masks: bool = False
    boxes: bool = False
    evaluated_masks: bool = False
    filtered: bool = False
    min_size: int = 0
    must_have_objects: bool = False
    unused: Counter = field(default_factory=Counter)  # annotations, by reason

    def faults(self, content: Mapping[str, Any]) -> Iterator[Fault]:
        """Find what is wrong with the entries of a file.

        Args:
            content (Mapping): Of the file: ``images``, ``annotations``, ``categories``.

        Yields:
            tuple[str, str]: Entry, such as 'annotations[3] (id 17)', and the fault.
        """
        images: dict[Any, Entry] = {}  # the last one of an id, as pycocotools has it
        for i, image in enumerate(content['images']):
            if not _is_key(image, 'id'):
                yield _name('images', i, image), _wrong(image, 'id', 'a number')
                continue
            first = images.get(image['id'], image).get('file_name')
            if first != image.get('file_name'):
                yield _name('images', i, image), (
                    f'has the id of {first}, every image needs its own')
            images[image['id']] = image
        for i, image in enumerate(content['images']):
            is_read = _is_key(image, 'id') and images[image['id']] is image
            fault = self._image_fault(image) if is_read else None
            if fault:
                yield _name('images', i, image), fault
        if not content['images']:
            yield 'images', 'is an empty list'
        wanted = {each.get('id'): not self.classes or each.get('name') in self.classes
                  for each in content['categories']}
        seen: dict[Any, bool] = {}  # ids, and whether they are of a listed image
        used = 0
        annotations = content.get('annotations') or []
        for i, each in enumerate(annotations):
            fault = self._fault(each, images, wanted, seen)
            if fault:
                yield _name('annotations', i, each), fault
            used += fault is None
        if self.must_have_objects and not used and content['images']:
            yield 'annotations', (
                'has none of a listed image and category with a box of at least a '
                'pixel in the image ([x, y, width, height] in pixels), so that there '
                'is nothing to learn')

    def notes(self) -> Iterator[str]:
        """Say what is not used, after :meth:`faults`."""
        for reason, number in self.unused.items():
            if number:
                yield f'{number} annotations {UNUSED[reason]} and are not used'

    def _fault(self, each: Entry, images: Mapping[Any, Entry],
               wanted: Mapping[Any, bool], seen: dict[Any, bool]) -> str | None:
        """What is wrong with an annotation; '' if it is not used, None if nothing."""
        missing = [key for key in ('id', 'image_id', 'category_id')
                   if not _is_key(each, key)]
        if missing:
            return _wrong(each, missing[0], 'a number')
        image = images.get(each['image_id'])
        read_before = seen.get(each['id'])  # pycocotools has the last one of an id
        seen[each['id']] = read_before or image is not None
        if read_before is not None and seen[each['id']]:
            return 'has the id of another annotation'
        if image is None or self._image_fault(image):
            self.unused['images'] += image is None
            return ''
        self.unused['categories'] += each['category_id'] not in wanted
        used = wanted.get(each['category_id'], False)
        fault = self._training_fault(each, image, used)
        if used and not fault and self.must_have_objects and _is_dropped(each, image):
            self.unused['boxes'] += 1
            return ''
        if not fault and used and (self.boxes or self.evaluated_masks):
            fault = self._evaluation_fault(each, image)
        return fault or (None if used else '')

    def _image_fault(self, image: Entry) -> str | None:
        if not isinstance(image.get('file_name'), str):
            return _wrong(image, 'file_name', 'a text')
        for key in ('height', 'width'):
            if key not in image or self.filtered and not _is_number(image[key]):
                return _wrong(image, key, 'a number')
        return None

    def _training_fault(self, each: Entry, image: Entry, used: bool) -> str | None:
        """As ``CocoDataset.parse_data_info`` and ``LoadAnnotations`` would find it."""
        if each.get('ignore'):
            return None
        box = each.get('bbox')
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            return _wrong(each, 'bbox', 'four numbers')
        if not (_is_number(image['height']) and _is_number(image['width'])):
            return 'is of an image whose height and width are no numbers'
        if _is_outside(each, image):
            return None
        if not _is_number(each.get('area')):
            return _wrong(each, 'area', 'a number')
        small = min(image['width'], image['height']) < self.min_size
        if not (self.masks and used) or small or _is_dropped(each, image):
            return None
        return _mask_fault(each, self._size(each, image))

    def _evaluation_fault(self, each: Entry, image: Entry) -> str | None:
        """As pycocotools would find it."""
        if not _is_number(each.get('area')):
            return _wrong(each, 'area', 'a number')
        if not _is_number(each.get('iscrowd')):
            return _wrong(each, 'iscrowd', '0 or 1')
        if self.evaluated_masks:
            return _mask_fault(each, (image['height'], image['width']), strict=True)
        return None

    def _size(self, each: Entry, image: Entry) -> tuple[int, int]:
        """Height and width that a mask must have: those of the image file."""
        size = image['height'], image['width']
        mask = each.get('segmentation')
        if isinstance(mask, dict) and tuple(as_list(mask.get('size'))) != size:
            try:
                with Image.open(osp.join(self.folder, image['file_name'])) as file:
                    return file.height, file.width
            except OSError:
                pass
        return size


def _is_outside(each: Entry, image: Entry) -> bool:
    """Whether the box of an annotation is outside of the image."""
    x, y, w, h = each['bbox']
    return max(0, min(x + w, image['width']) - max(x, 0)) * \
        max(0, min(y + h, image['height']) - max(y, 0)) == 0


def _is_dropped(each: Entry, image: Entry) -> bool:
    """Whether ``CocoDataset.parse_data_info`` leaves a faultless annotation out."""
    return (bool(each.get('ignore')) or _is_outside(each, image) or each['area'] <= 0
            or min(each['bbox'][2:]) < 1)


def _mask_fault(each: Entry, size: tuple[int, int], strict: bool = False) -> str | None:
    """What is wrong with the mask of an annotation.

    Args:
        each (Mapping): The annotation.
        size (tuple[int, int]): Height and width that a mask must have.
        strict (bool): Whether polygons of less than three points are wrong. In training
            such objects are ignored. Defaults to False.
    """
    mask = each.get('segmentation')
    if not mask:
        return "has no 'segmentation': a polygon or run lengths, which masks need"
    if isinstance(mask, dict):
        return _run_length_fault(mask, size)
    if not isinstance(mask, list) or not all(
            isinstance(polygon, list) and all(map(_is_number, polygon))
            for polygon in mask):
        return _wrong(each, 'segmentation', 'lists of numbers, or run lengths')
    if strict and any(len(polygon) < 6 for polygon in mask):
        return "has a polygon of less than three points in 'segmentation'"
    return None


def _run_length_fault(mask: Entry, size: tuple[int, int]) -> str | None:
    from pycocotools import mask as masks
    counts, given = mask.get('counts'), mask.get('size')
    if not isinstance(counts, (list, str)) or not isinstance(given, list):
        return "has no 'counts' and 'size' in 'segmentation'"
    if tuple(given) != size:
        return (f"has a mask of {given[:3]} in 'segmentation', but its image is "
                f'{list(size)} (height, width)')
    try:
        if isinstance(counts, list) and sum(counts) != size[0] * size[1]:
            raise ValueError(f'{sum(counts)} pixels')  # the rest would be at random
        masks.decode(masks.frPyObjects(dict(mask), *size) if isinstance(counts, list)
                     else dict(mask))
    except Exception as error:
        return f"has run lengths that are damaged in 'segmentation' ({error})"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def _is_key(entry: Entry, key: str) -> bool:
    """Whether an entry has an id that can be looked up."""
    return key in entry and not isinstance(entry[key], (list, dict))


def _wrong(entry: Entry, key: str, expected: str) -> str:
    if entry.get(key) is None:
        return f'has no {key!r}'
    return f'has {key!r} {entry[key]!r:.40}, expected {expected}'


def _name(key: str, index: int, entry: Entry) -> str:
    details = [f'{key} {entry[key]}' for key in ('id', 'image_id', 'file_name')
               if _is_key(entry, key)]
    return f'{key}[{index}]' + (f' ({", ".join(details)})' if details else '')


def coco_readers(cfg: Config, split: str) -> Iterator[tuple[str, CocoReader]]:
    """Find out how a run reads its COCO files.

    Args:
        cfg (Config): Config of the run.
        split (str): 'train', 'val' or 'test'.

    Yields:
        tuple[str, CocoReader]: Path of a file, and how it is read.
    """
    metrics = [metric for metric in split_metrics(cfg, split) if split != 'train'
               and type_name(metric) == 'CocoMetric' and not metric.get('format_only')]
    evaluated = {kind for metric in metrics for path in as_list(metric.get('ann_file'))
                 if path for kind in as_list(metric.get('metric', 'bbox'))}
    for dataset, path in coco_files(cfg, [split]):
        chosen = (dataset.get('filter_cfg') or {}) if split == 'train' else {}
        prefix = (dataset.get('data_prefix') or {}).get('img') or ''
        yield path, CocoReader(
            join_root(dataset.get('data_root') or '', prefix),
            class_names(cfg, dataset) or (),
            any(type_name(step) == 'LoadAnnotations' and step.get('with_mask')
                for step in nested_dicts(dataset.get('pipeline'))),
            'bbox' in evaluated, 'segm' in evaluated, bool(chosen),
            chosen.get('min_size', 0), bool(chosen.get('filter_empty_gt')))


def check_coco_entries(cfg: Config, split: str,
                       largest: float = LARGEST_PARSED) -> None:
    """Check the entries of a run's COCO files.

    Args:
        cfg (Config): Config of the run.
        split (str): 'train', 'val' or 'test'.
        largest (float): Larger files, in bytes, are left alone: MMDetection reads them
            once more. Defaults to ``LARGEST_PARSED``.

    Raises:
        InputError: With the first entries that MMDetection would fail on.
    """
    for path, reader in coco_readers(cfg, split):
        if osp.getsize(path) > largest:
            continue
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
        faults = [f'{entry} {fault}' for entry, fault in reader.faults(content)]
        for note in reader.notes():
            print_log(f'{path}: {note}', logger='current', level=logging.WARNING)
        if faults:
            raise InputError(
                f'{path}: {list_some(faults, 2)}. Correct the file, or remove the '
                'entries; tools/analysis_tools/check_dataset.py CONFIG lists all.')
