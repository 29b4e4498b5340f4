"""Entries of COCO files: what MMDetection fails on is named, and nothing else."""
import copy
import re

import pytest
from PIL import Image

from mm_efficient.runs.coco_entries import CocoReader

CONTENT = dict(
    images=[dict(id=1, file_name='1.jpg', width=64, height=48),
            dict(id=2, file_name='2.jpg', width=64, height=48)],
    annotations=[
        dict(id=5, image_id=1, category_id=7, bbox=[1, 1, 9, 9], area=81, iscrowd=0,
             segmentation=[[1, 1, 9, 1, 9, 9]]),
        dict(id=6, image_id=2, category_id=7, bbox=[0, 0, 64, 48], area=9, iscrowd=1,
             segmentation=dict(size=[48, 64], counts=[0, 9, 3063]))],
    categories=[dict(id=7, name='cat'), dict(id=8, name='dog')])
TRAIN = dict(masks=True, filtered=True, must_have_objects=True)
EVALUATED = dict(masks=True, boxes=True, evaluated_masks=True)
DELETED = object()


def faults(path, value, **options):
    content = copy.deepcopy(CONTENT)
    *keys, last = path
    node = content
    for key in keys:
        node = node[key]
    if value is DELETED:
        del node[last]
    else:
        node[last] = value
    reader = CocoReader(**options)
    return [f'{entry} {fault}' for entry, fault in reader.faults(content)], reader


FIRST, CROWD = ('annotations', 0), ('annotations', 1)
WRONG = [
    *(((*FIRST, key), DELETED, f"has no '{key}'", TRAIN)
      for key in ('id', 'image_id', 'category_id', 'bbox', 'area', 'segmentation')),
    *((('images', 0, key), DELETED, rf"images\[0\].* has no '{key}'", TRAIN)
      for key in ('id', 'file_name', 'height', 'width')),
    ((*FIRST, 'bbox'), [1, 1, 9], r"'bbox' \[1, 1, 9\], expected four numbers", TRAIN),
    ((*FIRST, 'bbox'), ['1', '1', '9', '9'], 'expected four numbers', TRAIN),
    ((*FIRST, 'bbox'), dict(x=1), 'expected four numbers', TRAIN),
    ((*FIRST, 'area'), '81', "'area' '81', expected a number", TRAIN),
    ((*FIRST, 'segmentation'), [], 'polygon or run lengths', TRAIN),
    ((*FIRST, 'segmentation'), [1, 1, 9, 1, 9, 9], 'expected lists of numbers', TRAIN),
    ((*FIRST, 'segmentation'), [['1'] * 6], 'expected lists of numbers', TRAIN),
    ((*CROWD, 'id'), 5, 'the id of another annotation', TRAIN),
    ((*CROWD, 'segmentation', 'size'), [64, 48], r'mask of \[64, 48\].*\[48, 64\]',
     TRAIN),
    ((*CROWD, 'segmentation', 'counts'), [0, 9, 9], 'run lengths that are damaged',
     TRAIN),
    ((*CROWD, 'segmentation', 'counts'), DELETED, "no 'counts' and 'size'", TRAIN),
    (('images', 0, 'width'), '64', "'width' '64', expected a number", TRAIN),
    (('images', 0, 'file_name'), 3, "'file_name' 3, expected a text", TRAIN),
    (('images', 1, 'id'), 1, 'the id of 1.jpg, every image', TRAIN),
    (('images', ), [], 'images is an empty list', TRAIN),
    (('annotations', ), [], 'nothing to learn', TRAIN),
    (('annotations', ), [dict(CONTENT['annotations'][0], bbox=[.1, .1, .4, .4])],
     r'a box of at least a pixel .*in pixels\), so that there is nothing', TRAIN),
    ((*FIRST, 'iscrowd'), DELETED, "has no 'iscrowd'", EVALUATED),
    ((*FIRST, 'area'), DELETED, "has no 'area'", EVALUATED),
    ((*FIRST, 'segmentation'), [[1, 1, 9, 1]], 'less than three points', EVALUATED)]


@pytest.mark.parametrize('path, value, message, options', WRONG)
def test_what_mmdetection_fails_on(path, value, message, options):
    (first, *_), _ = faults(path, value, **options)
    assert re.search(message, first)
    if path[0] == 'annotations' and len(path) > 2:
        assert first.startswith(f'annotations[{path[1]}] (')


ALLOWED = [
    ((*FIRST, 'segmentation'), DELETED, dict()),  # no masks are read
    ((*FIRST, 'segmentation'), [[1, 1, 9, 1]], TRAIN),  # becomes an ignored object
    ((*FIRST, 'iscrowd'), DELETED, TRAIN),
    ((*FIRST, 'ignore'), True, TRAIN),
    ((*FIRST, 'bbox'), [90, 1, 9, 9], TRAIN),  # outside of the image: is dropped
    ((*FIRST, 'category_id'), 99, TRAIN), ((*FIRST, 'image_id'), 99, TRAIN),
    (('annotations', ), DELETED, dict()), (('annotations', ), [], dict()),
    (('images', 0, 'license'), None, TRAIN),
    (('images', 1, 'file_name'), '1.jpg', TRAIN),
    ((*FIRST, 'id'), 'five', TRAIN)]


@pytest.mark.parametrize('path, value, options', ALLOWED)
def test_what_mmdetection_reads_is_not_refused(path, value, options):
    found, reader = faults(path, value, **options)
    assert found == []
    if value == 99:
        assert sum(reader.unused.values()) == 1


@pytest.mark.parametrize('box', [[90, 1, 9, 9], [.1, .1, .4, .4], [1, 1, 0, 9]])
def test_boxes_that_mmdetection_drops_are_counted(box):
    _, reader = faults((*FIRST, 'bbox'), box, **TRAIN)
    note, = reader.notes()
    assert note.startswith('1 annotations have boxes of less than a pixel, or outside')
    assert not list(faults((*FIRST, 'bbox'), box, **EVALUATED)[1].notes())


def test_masks_of_classes_that_are_not_used():
    assert faults((*FIRST, 'segmentation'), [], classes=['dog'], masks=True)[0] == []


def test_objects_of_images_that_are_too_small():
    assert faults((*FIRST, 'segmentation'), [], masks=True, min_size=50)[0] == []


def test_the_image_decides_over_its_entry(tmp_path):
    """MMDetection takes the size of the file, not that of its entry."""
    Image.new('RGB', (64, 48)).save(tmp_path / '2.jpg')
    options = dict(TRAIN, folder=str(tmp_path))
    assert faults(('images', 1, 'height'), 99, **options)[0] == []
    Image.new('RGB', (9, 9)).save(tmp_path / '2.jpg')
    assert 'its image is [9, 9]' in faults(('images', 1, 'height'), 99, **options)[0][0]
