import json

import numpy as np
import pytest
from PIL import Image

from mm_efficient.datasets import mini
from mm_efficient.datasets.mini import CLASSES, generate_dataset
from mm_efficient.datasets.scenes import GROUNDS, SHAPES, draw_scene

SMALL = dict(num_train=6, num_val=3)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mini')
    for name in ('coco', 'ade', 'imagenet'):
        generate_dataset(name, folder, **SMALL)
    return folder


@pytest.fixture(scope='module')
def coco(root):
    pytest.importorskip('pycocotools')
    from pycocotools.coco import COCO
    return COCO(str(root / 'coco/annotations/instances_train2017.json'))


def scene(index, split='train'):
    rng = np.random.default_rng([0, split == 'val', index])
    return draw_scene(rng, mini._shape_of(index),
                      index % mini.CROWD_EVERY == 0)


def test_coco_masks_are_the_visible_parts(coco):
    for index in range(SMALL['num_train']):
        expected = scene(index)
        anns = coco.loadAnns(coco.getAnnIds([index + 1], iscrowd=False))
        assert len(anns) == len(expected.masks) > 0
        for ann, mask, label in zip(anns, expected.masks, expected.labels):
            decoded = coco.annToMask(ann).astype(bool)
            assert np.array_equal(decoded, mask)
            assert coco.cats[ann['category_id']]['name'] == SHAPES[label]
        assert np.sum(expected.masks, 0).max() == 1  # no pixel belongs to two objects


def test_coco_areas_and_boxes(coco):
    for ann in coco.dataset['annotations']:
        mask = coco.annToMask(ann)
        rows, columns = np.nonzero(mask)
        x, y, w, h = ann['bbox']
        assert ann['area'] == mask.sum()
        assert (x, y) == (columns.min(), rows.min())
        assert (x + w, y + h) == (columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_coco_has_a_crowd_and_polygons(root, split):
    path = root / f'coco/annotations/instances_{split}2017.json'
    content = json.loads(path.read_text())
    crowds = [a for a in content['annotations'] if a['iscrowd']]
    assert crowds and all('counts' in a['segmentation'] for a in crowds)
    assert all(isinstance(a['segmentation'], list)
               for a in content['annotations'] if not a['iscrowd'])
    for image in content['images']:
        file = root / f'coco/{split}2017' / image['file_name']
        assert Image.open(file).size == (image['width'], image['height'])
    assert len(content['images']) == SMALL[f'num_{split}']


def test_a_mask_with_holes_and_parts_survives_its_polygons():
    mask_utils = pytest.importorskip('pycocotools.mask')
    mask = np.zeros((60, 70), bool)
    mask[5:40, 5:40] = True
    mask[10:20, 10:20] = False  # two holes
    mask[25:35, 22:32] = False
    mask[13:16, 13:16] = True  # an island in a hole
    mask[50:55, 0:70] = True  # up to both edges
    rle = mask_utils.merge(
        mask_utils.frPyObjects(mini.polygons_of(mask), *mask.shape))
    assert np.array_equal(mask_utils.decode(rle).astype(bool), mask)


def test_ade_label_maps(root):
    names = sorted(p.stem for p in (root / 'ade/images/training').iterdir())
    assert len(names) == SMALL['num_train']
    found = set()
    for index, name in enumerate(names):
        label_map = np.array(
            Image.open(root / f'ade/annotations/training/{name}.png'))
        image = Image.open(root / f'ade/images/training/{name}.jpg')
        assert label_map.shape == image.size[::-1]
        found |= set(np.unique(label_map))
        expected = scene(index)
        for mask, label in zip(expected.masks, expected.labels):
            assert (label_map[mask] == len(GROUNDS) + label + 1).all()
        if expected.crowd is not None:
            assert (label_map[expected.crowd] == 0).all()
    assert found <= set(range(len(CLASSES['ade']) + 1))
    assert {0, 1, 2} <= found


def test_imagenet_folders(root):
    for split in ('train', 'val'):
        folders = sorted(p.name for p in (root / 'imagenet' / split).iterdir())
        assert folders == list(CLASSES['imagenet'])  # labels are their ranks
        files = list((root / 'imagenet' / split).rglob('*.JPEG'))
        assert len(files) == SMALL[f'num_{split}']


def test_objects_of_several_sizes_overlap():
    scenes = [scene(i) for i in range(40)]
    shares = [m.sum() / m.size for s in scenes for m in s.masks]
    assert min(shares) < 0.01 and max(shares) > 0.15
    boxes_meet = 0
    for expected in scenes:
        boxes = [(*np.argwhere(m).min(0), *np.argwhere(m).max(0))
                 for m in expected.masks]
        boxes_meet += any(
            a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
            for i, a in enumerate(boxes) for b in boxes[:i])
    assert boxes_meet >= 10


def test_same_files_again(root, tmp_path):
    for name in ('coco', 'ade', 'imagenet'):
        again = generate_dataset(name, tmp_path, **SMALL)
        files = sorted(p for p in again.rglob('*') if p.is_file())
        assert len(files) > 6
        for file in files:
            first = root / file.relative_to(tmp_path)
            assert first.read_bytes() == file.read_bytes(), file


def test_another_seed_gives_other_images(root, tmp_path):
    generate_dataset('imagenet', tmp_path, seed=1, **SMALL)
    name = 'imagenet/train/circle/circle_00000.JPEG'
    assert (tmp_path / name).read_bytes() != (root / name).read_bytes()


def test_present_data_is_kept_and_outdated_data_replaced(tmp_path):
    folder = generate_dataset('imagenet', tmp_path, **SMALL)
    file = folder / 'train/circle/circle_00000.JPEG'
    stamp = file.stat().st_mtime_ns
    generate_dataset('imagenet', tmp_path, **SMALL)
    assert file.stat().st_mtime_ns == stamp
    generate_dataset('imagenet', tmp_path, num_train=10, num_val=3)
    assert len(list((folder / 'train').rglob('*.JPEG'))) == 10
    assert [p.name for p in tmp_path.iterdir()] == ['imagenet']


def test_interrupted_generation_leaves_nothing(tmp_path, monkeypatch):
    def interrupted(*args):
        (args[0] / 'train').mkdir()
        raise KeyboardInterrupt

    monkeypatch.setitem(mini._WRITERS, 'imagenet', interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_dataset('imagenet', tmp_path, **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_of_somebody_else_is_left_alone(tmp_path):
    own = tmp_path / 'imagenet' / 'precious.txt'
    own.parent.mkdir()
    own.write_text('mine')
    with pytest.raises(FileExistsError, match='is not a generated data set'):
        generate_dataset('imagenet', tmp_path, **SMALL)
    assert own.read_text() == 'mine'


@pytest.mark.parametrize('kwargs, message', [
    (dict(name='voc'), 'expected one'),
    (dict(name='ade', num_val=0), 'at least one image'),
])
def test_wrong_arguments(tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        generate_dataset(root=tmp_path, **kwargs)
