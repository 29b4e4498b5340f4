import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from mm_efficient.errors import InputError
from mm_efficient.visualization.figures import (
    MapRow,
    check_figure,
    draw_maps,
    save_figure,
)


def test_a_map_lies_where_it_belongs():
    values = torch.tensor([[0., -2.], [1., 1.]])
    signed, positive = (MapRow('title', dict(map=v), (64, 64), signed=True)
                        for v in (values, values + 2))
    panels = draw_maps(np.zeros((60, 50, 3), np.uint8), [signed, positive]).axes
    panel, shown = panels[1], panels[1].images[1]
    assert shown.get_extent() == [-.5, 63.5, 63.5, -.5]
    assert shown.get_clim() == (-2., 2.)
    assert panel.get_xlim() == (-.5, 49.5) and panel.get_ylim() == (59.5, -.5)
    assert panel.get_title() == 'map\n-2 to 1'
    assert panels[3].images[1].get_clim() == (0., 3.)


def test_figures_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / 'new' / 'figure.png'
    check_figure(path)
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
        check_figure('figure.doc')
    with pytest.raises(InputError, match='cannot be created'):
        check_figure(path / 'below' / 'a.png')
