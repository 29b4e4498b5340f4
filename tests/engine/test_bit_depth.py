"""Training and testing see the same pixels, or name the file."""
import sys
from pathlib import Path

import numpy as np
import pytest
from mmcv.transforms import TRANSFORMS
from mmengine.registry import DefaultScope
from PIL import Image

from mm_efficient.errors import InputError, error_line
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.traversal import nested_dicts, split_datasets

CONFIGS = ('soft_tiny_300e.py', 'swiftformer_xs_300e.py', 'lowformer_b0_300e.py',
           'reduceformer_b2_300e.py', 'soft_tiny_retinanet_1x.py',
           'soft_tiny_maskrcnn_1x.py', 'soft_tiny_fpn_80k.py')
rng = np.random.default_rng(0)
COLOUR = rng.integers(0, 256, (40, 60, 3), np.uint8)
GREY16 = rng.integers(0, 65536, (40, 60), np.uint16)


def rotated():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    return exif


def colour(mode):
    image = Image.fromarray(COLOUR).convert('L' if mode == 'LA' else 'RGB')
    image = image.convert(mode)
    if mode in ('LA', 'RGBA'):
        image.putalpha(Image.fromarray(COLOUR[..., 0]))
    return image


def transparent():
    image = colour('P')
    image.info['transparency'] = 0
    return image


KINDS = [(f'{mode}.png', lambda mode=mode: colour(mode), {})
         for mode in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA')]
KINDS += [(f'{mode}.tif', lambda mode=mode: colour(mode), {})
          for mode in ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK', 'YCbCr')]
KINDS += [(f'{mode}.jpg', lambda mode=mode: colour(mode), {})
          for mode in ('L', 'RGB', 'CMYK')]
KINDS += [('transparent.png', transparent, {}), ('x.gif', lambda: colour('P'), {}),
          ('x.bmp', lambda: colour('RGB'), {}), ('x.webp', lambda: colour('RGBA'), {}),
          ('x.ppm', lambda: colour('RGB'), {}),
          ('turned.jpg', lambda: colour('RGB'), dict(exif=rotated()))]
DEEP = [('16.png', lambda: Image.fromarray(GREY16)),
        ('16.tif', lambda: Image.fromarray(GREY16)),
        ('32.tif', lambda: Image.fromarray(GREY16.astype(np.int32))),
        ('float.tif', lambda: Image.fromarray(GREY16.astype(np.float32)))]


def reads(name):
    """Loading steps of training, validation, testing and TTA of a config."""
    cfg = load_config(name)
    pipelines = [split_datasets(cfg, split)[0]['pipeline']
                 for split in ('train', 'val', 'test')]
    pipelines += [cfg.tta_pipeline] if 'tta_pipeline' in cfg else []
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for pipeline in pipelines:
            steps = [step for step in pipeline
                     if step['type'] in ('LoadImageFromFile', 'CheckBitDepth')]
            assert len(steps) == 2
            yield [TRANSFORMS.build(step) for step in steps]


@pytest.mark.parametrize('name', CONFIGS)
def test_same_pixels_or_the_name_of_the_file(tmp_path, name):
    loaders = list(reads(name))

    def load(path):
        for loader in loaders:
            results = dict(img_path=str(path))
            for step in loader:
                results = step(results)
            yield results['img']

    for file, draw, options in KINDS:
        draw().save(tmp_path / file, **options)
        first, *others = load(tmp_path / file)
        assert first.shape in ((40, 60, 3), (60, 40, 3)) and first.dtype == np.uint8
        assert 20 < first.mean() < 235
        for other in others:
            np.testing.assert_array_equal(first, other, err_msg=file)
    for file, draw in DEEP:
        draw().save(tmp_path / file)
        with pytest.raises(InputError, match=f'{file} has more than 8 bits'):
            list(load(tmp_path / file))


def test_arrays_have_no_file():
    step = TRANSFORMS.build(dict(type='CheckBitDepth'))
    for results in (dict(img=COLOUR), dict(img=COLOUR, img_path='no/such/file.png')):
        assert step(results) is results


class _Images:
    def __len__(self):
        return 1

    def __getitem__(self, index):
        raise InputError('a.png has more than 8 bits')


def test_errors_of_loading_processes_are_one_line():
    from torch.utils.data import DataLoader
    with pytest.raises(SystemExit) as stop, error_line():
        next(iter(DataLoader(_Images(), num_workers=1)))
    assert stop.value.code == 'error: a.png has more than 8 bits'


def test_every_config_loads_images_alike():
    """All leaves, as text of their bases: no stock loader is left."""
    folder = Path(load_config(CONFIGS[0]).filename).parents[1]
    for path in folder.rglob('*.py'):
        text = path.read_text()
        assert "dict(type='LoadImageFromFile')" not in text, path
    assert sys.modules[TRANSFORMS.get('CheckBitDepth').__module__]
    for name in CONFIGS:
        for node in nested_dicts(load_config(name).to_dict()):
            if node.get('type') == 'LoadImageFromFile':
                assert node['imdecode_backend'] == 'pillow'
