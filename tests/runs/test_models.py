import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from PIL import Image

from mm_efficient.errors import InputError
from mm_efficient.files import check_output, find_images, read_image
from mm_efficient.runs.models import load_model, model_input
from mm_efficient.visualization.features import draw_features, feature_pyramid
from mm_efficient.visualization.figures import save_figure, show_map

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


def test_pyramid(photo):
    pixels = photo[1]
    model = load_model(Config(CONFIG))
    x = model_input(model, pixels)
    levels = feature_pyramid(model, x)
    with torch.no_grad():
        maps = model.backbone(x)
    assert [level.stride for level in levels] == [4, 8, 16, 32]
    assert [level.name for level in levels][::3] == ['backbone 1', 'backbone 4']
    assert [level.extent for level in levels] == [
        (48, 72), (48, 72), (48, 80), (64, 96)]
    for level, expected in zip(levels, maps):
        assert (level.maps == expected[0]).all()
    level = levels[0]
    level.maps[:] = 0
    level.maps[3, 5, 5], level.maps[6, 2:4, 2:4] = 3., 4.
    assert level.telling(2) == [6, 3] and level.constant == 6
    figure = draw_features(pixels, levels, num_channels=2)
    assert figure.axes[1].get_title() == 'magnitude\n0 to 4'
    assert figure.axes[2].get_title() == 'channel 6\n0 to 4'


def test_a_map_lies_where_it_belongs():
    figure = Figure()
    panel = figure.subplots()
    values = np.array([[0., -2.], [1., 1.]])
    show_map(panel, np.zeros((60, 50, 3), np.uint8), values, (64, 64), signed=True)
    shown = panel.images[1]
    assert shown.get_extent() == [-.5, 63.5, 63.5, -.5]
    assert shown.get_clim() == (-2., 2.)
    assert panel.get_xlim() == (-.5, 49.5) and panel.get_ylim() == (59.5, -.5)
    show_map(panel, np.zeros((60, 50, 3), np.uint8), values + 2, (64, 64), signed=True)
    assert panel.images[3].get_clim() == (0., 3.)


def test_figures_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'new' / 'figure.png'
    check_output(path, ['.png'])
    save_figure(Figure(figsize=(2, 1)), path, dpi=50)
    assert Image.open(path).size == (100, 50)
    before = path.read_bytes()

    class Broken(Figure):
        def savefig(self, file, **settings):
            file.write_bytes(b'half')
            raise OSError('disk full')

    with pytest.raises(OSError, match='disk full'):
        save_figure(Broken(), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]
    with pytest.raises(InputError, match='has to end with .png'):
        check_output('figure.doc', ['.png'])
    with pytest.raises(InputError, match='cannot be created'):
        check_output(path / 'below' / 'a.png', ['.png'])
