import re
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load_module, load_tool
from mmengine.config import Config
from PIL import Image

from mm_efficient.datasets.mini import PALETTE
from mm_efficient.runs.models import load_model, model_input

browser = load_module('visualization/browse_dataset')


@pytest.fixture
def image(tmp_path):
    """An image, wider than high."""
    y, x = np.mgrid[:96, :140]
    pixels = np.stack([x, 2 * y, x + y], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'image.jpg')
    return str(tmp_path / 'image.jpg')


def test_attention_maps(tiny, image, config, fails, capsys):
    tool = load_tool('visualization/attention_maps')
    args = [image, config('cls/ecoformer_pvt_b0_30e.py'), '--mini',
            '--short-side', '96']
    tool([*args, '--out', 'a.png', '--stages', '2', '4', '--heads', '2'])
    printed = capsys.readouterr().out
    assert 'stage 2, block 2: similarity of hash codes, 2 head(s) of 12 x 18' in printed
    assert 'stage 4, block 2: softmax of the token, 8 head(s) of 3 x 5' in printed
    width, height = Image.open('a.png').size  # two rows of four panels
    assert width / height == pytest.approx(4 * 3 * 140 / 96 / (2 * 3.35), rel=0.01)
    assert 'at least 25 tokens' in fails(tool, *args, '--short-side', '64')
    assert 'outside the image, which is 140 wide' in fails(
        tool, *args, '--token', '140', '10')
    args[1] = config('cls/lowformer_b0_300e.py')
    assert 'no attention in stages [1]; this LowFormer has it in [3, 4]' in fails(
        tool, *args, '--stages', '1')
    assert 'has to end with' in fails(tool, *args, '--out', 'a.doc')
    for option, value, message in (
            ('--short-side', '-4', '--short-side is -4; expected pixels'),
            ('--short-side', '20', 'cannot run on the image: ValueError: LowFormer'),
            ('--device', 'bogus', "cannot be moved to device 'bogus'"),
            ('--heads', '-1', '--heads must be at least 0')):
        assert message in fails(tool, *args, option, value)


def test_feature_maps(tiny, image, config, monkeypatch):
    tool, figures = load_module('visualization/feature_maps'), []
    monkeypatch.setattr(tool, 'save_figure', lambda figure, out: figures.append(figure))
    tool.main([image, config('det/swiftformer_xs_retinanet_1x.py'), '--mini',
               '--short-side', '64', '--channels', '1'])
    titles = [panel.get_title() for panel in figures[0].axes[::3]]
    assert [title.split(':')[0] for title in titles] == [
        *(f'backbone {i}' for i in range(1, 4)), *(f'neck {i}' for i in range(1, 6))]
    assert [title.split()[3] for title in titles[3:]] == ['8', '16', '32', '64', '128']
    assert all('\n256x' in title for title in titles[3:])


def test_feature_maps_of_a_model():
    tool = load_module('visualization/feature_maps')
    photo = np.random.RandomState(0).randint(256, size=(48, 70, 3), dtype=np.uint8)
    model = load_model(Config(dict(default_scope='mmpretrain', model=dict(
        type='ImageClassifier', data_preprocessor=dict(mean=[9.] * 3, std=[2.] * 3),
        backbone=dict(type='SwiftFormer', out_indices=(0, 1, 2, 3), arch=dict(
            embed_dims=[8, 12, 16, 20], depths=[1, 1, 1, 1]))))))
    with torch.no_grad():
        expected = model.backbone(x := model_input(model, photo))
    values = expected[0][0]
    values[:] = 0
    values[3, 5, 5], values[6, 2:4, 2:4] = 3., 4.
    model.backbone.forward = lambda x: expected
    rows = tool.feature_rows(model, x, num_channels=2)
    assert [row.title for row in rows] == [
        'backbone 1: stride 4\n8x12x18', 'backbone 2: stride 8\n12x6x9',
        'backbone 3: stride 16\n16x3x5', 'backbone 4: stride 32\n20x2x3']
    assert list(rows[0].maps) == ['norm', 'channel 6', 'channel 3']
    assert (rows[0].maps['channel 6'] == values[6]).all()
    assert rows[0].maps['norm'][5, 5] == 3 and rows[0].maps['norm'].max() == 4
    # 2 x 3 values of stride 32 on 48 x 70 pixels
    assert rows[3].extent == (64, 96)


@pytest.fixture
def browse(config, tiny, monkeypatch):
    """Run the browser; return each panel with the data drawn in it."""
    def run(name, *args):
        drawn, draw = [], browser.draw

        def record(panel, data, visualizer):
            draw(panel, data, visualizer)
            drawn.append((panel, data))

        with monkeypatch.context() as patch:
            patch.setattr(browser, 'draw', record)
            browser.main([config(name), '--mini', *args])
        return drawn
    return run


def test_browse_dataset(tiny, browse, config, fails, capsys):
    path = 'cls/swiftformer_xs_300e.py'
    drawn = browse(path, '--num-samples', '3', '--split', 'val')
    assert '3 of 4 samples, written: dataset.png' in capsys.readouterr().out
    titles = [panel.get_title() for panel, _ in drawn]
    assert titles == ['circle_00000.JPEG (64, 64)', 'square_00001.JPEG (64, 64)',
                      'star_00003.JPEG (64, 64)']
    width, height = Image.open('dataset.png').size
    assert width > height * 2.5  # three in a row
    # One image, with different augmentations
    (_, first), (_, second) = browse(path, '--num-samples', '2', '--cfg-options',
                                     'train_dataloader.dataset.indices=[3]')
    assert first['data_samples'].img_path == second['data_samples'].img_path
    assert (first['inputs'] != second['inputs']).any()
    assert 'at least 1' in fails(browser.main, config(path), '--num-samples', '0')
    assert 'no val_dataloader' in fails(
        browser.main, config(path), '--mini', '--split', 'val', '--cfg-options',
        'val_dataloader=None')
    assert 'ADE20K' in fails(browser.main, config('seg/swiftformer_xs_fpn_40k.py'))
    for file in Path('data/mini/imagenet/val').rglob('*.JPEG'):
        file.write_bytes(b'')
    assert re.search(r'circle_\d+.JPEG cannot be read as an image \(0 bytes', fails(
        browser.main, config(path), '--mini', '--split', 'val'))


@pytest.mark.parametrize('split', ['train', 'val'])
def test_segments_are_drawn_in_their_colors(browse, split):
    (panel, data), = browse('seg/swiftformer_xs_fpn_40k.py', '--num-samples', '1',
                            '--split', split)
    image = data['inputs'].flip(0).permute(1, 2, 0).numpy()
    labels = data['data_samples'].gt_sem_seg.data[0].numpy()
    color = np.zeros((256, 3))
    color[:len(PALETTE['ade'])] = PALETTE['ade']
    expected = image / 2 + color[labels] / 2
    same = np.abs(panel.images[0].get_array() - expected).max(-1) <= 1
    assert 0.7 < same.mean() < 1  # names are written over the segments


@pytest.mark.parametrize('split', ['train', 'val'])
def test_boxes_are_drawn_where_the_objects_are(browse, split):
    (panel, data), = browse('det/swiftformer_xs_retinanet_1x.py', '--num-samples', '1',
                            '--split', split)
    image = data['inputs'].flip(0).permute(1, 2, 0).numpy()
    changed = np.abs(panel.images[0].get_array().astype(int) - image).max(-1) > 10
    boxes = data['data_samples'].gt_instances.bboxes.round().int().tolist()
    assert boxes
    inside = np.zeros_like(changed)
    for x1, y1, x2, y2 in boxes:
        near = changed[max(y1 - 1, 0):y2 + 2, max(x1 - 1, 0):x2 + 2]
        # the sides; those of another object may lie on them
        assert near[:, :3].any(1).mean() > 0.7 and near[:3].any(0).mean() > 0.7
        inside[max(y1 - 3, 0):y2 + 4, max(x1 - 3, 0):x2 + 4] = True
    assert changed[~inside].mean() < 0.1  # some of a label may stick out
