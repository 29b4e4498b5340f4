"""Images and label maps that a run would fail on are named before it starts."""
import shutil
from functools import cache

import numpy as np
import pytest
from PIL import Image

from mm_efficient.datasets.mini import CLASSES, generate_dataset
from mm_efficient.errors import InputError
from mm_efficient.runs import image_checks
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.own_data import check_splits

NAMES = dict(coco='soft_tiny_maskrcnn_1x.py', ade='soft_tiny_fpn_80k.py',
             imagenet='soft_tiny_300e.py')
IMAGES = dict(coco='{}2017/*.jpg', ade='images/{}*/*.jpg', imagenet='{}/*/*')


@pytest.fixture(scope='module')
def originals(tmp_path_factory):
    folder = tmp_path_factory.mktemp('data')
    return {name: generate_dataset(name, folder, num_train=5, num_val=5)
            for name in NAMES}


@pytest.fixture
def data(originals, tmp_path):
    """Function that copies a data set."""
    return lambda name: shutil.copytree(originals[name], tmp_path / name)


@cache
def config(name):
    return load_config(NAMES[name])


def check(name, root, classes=None):
    cfg = load_config(config(name), data_root=root, classes=classes,
                      num_classes=5 if name == 'imagenet' else None)
    return check_splits(cfg, ('train', 'val'), classes=classes,
                        num_classes=5 if name == 'imagenet' else None)


def named(classes):
    return CLASSES['ade'] if classes else None


def first(root, pattern):
    return sorted(root.glob(pattern))[0]


@pytest.mark.parametrize('name', NAMES)
def test_good_data(data, name):
    root = data(name)
    first(root, IMAGES[name].format('train')).write_bytes(b'broken: is skipped')
    assert check(name, root, named(name == 'ade')) is not None


@pytest.mark.parametrize('name, content', [
    ('coco', None), ('coco', b''), ('ade', b'no image'), ('imagenet', b'')])
def test_a_broken_validation_image(data, name, content):
    root = data(name)
    path = first(root, IMAGES[name].format('val'))
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    reason = 'does not exist' if content is None else 'cannot be read as an image'
    with pytest.raises(InputError, match=reason) as error:
        check(name, root, named(name == 'ade'))
    assert str(path) in str(error.value)


@pytest.mark.parametrize('name', NAMES)
def test_no_images_at_all(data, name):
    root = data(name)
    for path in root.glob(IMAGES[name].format('train')):
        path.unlink()
    if name == 'coco':
        path = first(root, 'annotations/*train*')
        path.write_text('{"images": [], "annotations": [], "categories": '
                        '[{"id": 1, "name": "x"}]}')
        shutil.copy(path, first(root, 'annotations/*val*'))
    with pytest.raises(InputError, match='has no images|empty list'):
        check(name, root)


def test_all_training_images_are_broken(data):
    root = data('coco')
    for path in root.glob(IMAGES['coco'].format('train')):
        path.write_bytes(b'broken')
    with pytest.raises(InputError, match='1.jpg cannot be read .*like all 5 train'):
        check('coco', root)


def save(values, path, **options):
    Image.fromarray(np.array(values, np.uint8)).save(path, **options)


def size(path):
    with Image.open(path) as image:
        return image.height, image.width


MAP = 'annotations/{}*/*.png'
WRONG_MAPS = dict(
    label=('train', lambda path: save(np.full(size(path), 200), path),
           r'has the values 200, but the 150 classes'),
    large=('train', lambda path: save(np.ones((9, 90)), path), '90 x 9 pixels, but'),
    smaller=('val', lambda path: save(np.ones((9, 9)), path), '9 x 9 pixels, but its'),
    rgb=('train', lambda path: save(np.ones((*size(path), 3)), path),
         'not a label map'),
    rgb_val=('val', lambda path: save(np.ones((*size(path), 3)), path),
             'not a label map'),
    jpeg=('train', lambda path: save(np.full(size(path), 180), path, format='JPEG'),
          'has the values 180'),
    empty=('val', lambda path: path.write_bytes(b''), 'cannot be read as a label map'),
    missing=('train', lambda path: path.unlink(), 'does not exist; it is the label'))


@pytest.mark.parametrize('fault', WRONG_MAPS)
def test_wrong_label_maps(data, fault):
    """With ADE20K's own 150 classes."""
    split, change, message = WRONG_MAPS[fault]
    root = data('ade')
    path = first(root, MAP.format(split))
    change(path)
    with pytest.raises(InputError, match=message) as error:
        check('ade', root)
    assert str(path) in str(error.value)


def test_label_maps_that_run(data):
    """Half the size of the image, labels that the metric ignores, and a palette."""
    root = data('ade')
    path = first(root, MAP.format('train'))
    save(np.ones(np.array(size(path)) // 2), path)
    path, other, *_ = sorted(root.glob(MAP.format('val')))
    save(np.full(size(path), 200), path)
    Image.open(other).convert('P').save(other)
    assert check('ade', root) is not None


@pytest.mark.parametrize('name, pattern', [
    ('coco', IMAGES['coco']), ('ade', IMAGES['ade']), ('ade', MAP),
    ('imagenet', IMAGES['imagenet'])])
def test_files_of_validation_that_were_cut_off(data, name, pattern):
    root = data(name)
    path = first(root, pattern.format('val'))
    whole = path.read_bytes()
    path.write_bytes(whole + b'more' * 99)
    check(name, root, named(name == 'ade'))
    path.write_bytes(whole[:len(whole) // 2])
    with pytest.raises(InputError, match=f'{path.name} cannot be read '):
        check(name, root, named(name == 'ade'))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_images_of_more_than_eight_bits(data, split):
    root = data('coco')
    path = first(root, IMAGES['coco'].format(split))
    Image.new('I;16', size(path)[::-1]).save(path, format='PNG')
    with pytest.raises(InputError, match=f'{path.name} has more than 8 bits .*convert'):
        check('coco', root)


def test_images_that_the_camera_has_turned(data, monkeypatch):
    lines = []
    monkeypatch.setattr(image_checks, 'print_log',
                        lambda text, **kw: lines.append(text))
    root = data('coco')
    check('coco', root)
    assert not lines
    path = first(root, IMAGES['coco'].format('train'))
    with Image.open(path) as image:
        exif = image.getexif()
        exif[image_checks.ORIENTATION] = 6
        image.save(path, exif=exif)
    check('coco', root)
    line, = lines
    assert line.startswith(f'1 of 5 images do not have the width and height of their '
                           f'entry, such as {path} (192 x 256 pixels, entry 256 x 192)')


def test_hidden_files_and_links_to_folders(data):
    """As MMEngine lists files: without the first, with the second."""
    root = data('ade')
    for folder in ('annotations/training', 'images/training'):
        (root / folder / '._a.png').write_bytes(b'of a file system')
    (root / 'maps').mkdir()
    for folder in ('training', 'validation'):
        (root / 'annotations' / folder).rename(root / 'maps' / folder)
        (root / 'annotations' / folder).symlink_to(root / 'maps' / folder)
    check('ade', root, CLASSES['ade'])


def test_a_web_address_below_a_folder(data):
    root = data('coco')
    path = first(root, 'annotations/*val*')
    path.write_text(path.read_text().replace('"0000', '"http://x.org/0000'))
    with pytest.raises(InputError, match='val2017/http://x.org/.*jpg does not exist'):
        check('coco', root)


def test_images_with_another_suffix(data):
    root = data('ade')
    for path in root.glob(IMAGES['ade'].format('train')):
        path.rename(path.with_suffix('.png'))
    with pytest.raises(InputError, match=r'named \*.jpg; there are files.*png'):
        check('ade', root)


def test_class_folders_that_do_not_fit(data):
    root = data('imagenet')
    (root / 'train/.cache').mkdir()
    with pytest.raises(InputError, match=r"'.cache'.*counts as classes"):
        check('imagenet', root)
    (root / 'train/.cache').rmdir()
    val = first(root, 'val/*')
    val.rename(root / 'elsewhere')
    with pytest.raises(InputError, match=f"'{val.name}'. are in one of them") as error:
        check('imagenet', root)
    assert '--num-classes' not in str(error.value)
    for path in list((root / 'val').iterdir()):
        for image in path.iterdir():
            image.rename(root / 'val' / image.name)
        path.rmdir()
    with pytest.raises(InputError, match='into one folder for each class'):
        check('imagenet', root)
