import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image

from mm_efficient.errors import InputError
from mm_efficient.files import find_images, read_image
from mm_efficient.runs.models import load_model, model_input

CONFIG = dict(
    default_scope='mmpretrain',
    model=dict(
        type='ImageClassifier',
        data_preprocessor=dict(mean=[10., 20., 30.], std=[2., 4., 8.], to_rgb=True),
        backbone=dict(type='SwiftFormer', out_indices=(0, 1, 2, 3), arch=dict(
            embed_dims=[8, 12, 16, 20], depths=[1, 1, 1, 1]))))


@pytest.fixture
def photo(tmp_path):
    """Path and pixels of an image."""
    pixels = np.random.RandomState(0).randint(256, size=(48, 70, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'photo.png')
    return tmp_path / 'photo.png', pixels


def test_find_images(photo, tmp_path):
    (tmp_path / 'notes.txt').write_text('no picture')
    Image.new('RGB', (40, 40)).save(tmp_path / 'a.JPG', 'JPEG')
    assert [p.name for p in find_images(str(tmp_path))] == ['a.JPG', 'photo.png']
    assert find_images(str(photo[0])) == [photo[0]]
    with pytest.raises(InputError, match='does not exist'):
        find_images(str(tmp_path / 'none.jpg'))
    with pytest.raises(InputError, match='notes.txt is not an image'):
        find_images(str(tmp_path / 'notes.txt'))
    (tmp_path / 'broken.jpg').write_bytes(b'\xff\xd8\xff\xe0')
    with pytest.raises(InputError, match='broken.jpg is not an image'):
        find_images(str(tmp_path))
    (tmp_path / 'empty').mkdir()
    with pytest.raises(InputError, match='no image directly in it'):
        find_images(str(tmp_path / 'empty'))


def test_model_input_is_normalised_by_the_model(photo):
    path, pixels = photo
    assert (read_image(path) == pixels).all()
    assert read_image(path, 96).shape == (96, 140, 3)
    model = load_model(Config(CONFIG))
    assert not model.training
    x = model_input(model, pixels)
    expected = (torch.from_numpy(pixels).permute(2, 0, 1).float()
                - torch.tensor([10., 20., 30.])[:, None, None]
                ) / torch.tensor([2., 4., 8.])[:, None, None]
    torch.testing.assert_close(x, expected[None])


def test_checkpoint_that_does_not_fit(tmp_path):
    torch.save({'state_dict': {'weight': torch.zeros(2)}}, tmp_path / 'other.pth')
    with pytest.raises(InputError, match='does not fit the model'):
        load_model(Config(CONFIG), str(tmp_path / 'other.pth'))
    model = load_model(Config(CONFIG))
    weights = {f'module.{key}': value + 1 for key, value in model.state_dict().items()}
    torch.save({'state_dict': weights}, tmp_path / 'own.pth')
    loaded = load_model(Config(CONFIG), str(tmp_path / 'own.pth')).state_dict()
    for key, value in model.state_dict().items():
        assert (loaded[key] == value + 1).all()
