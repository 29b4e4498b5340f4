import numpy as np
import pytest
import torch
from conftest import load_module, load_tool
from mmengine.config import Config
from PIL import Image

from mm_efficient.datasets.mini import CLASSES, PALETTE, generate_dataset
from mm_efficient.errors import InputError
from mm_efficient.runs.configs import load_config
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


def test_feature_maps(tiny, image, config, capsys):
    tool = load_tool('visualization/feature_maps')
    tool([image, config('det/swiftformer_xs_retinanet_1x.py'), '--mini', '--short-side',
          '64', '--out', 'f.png', '--channels', '1'])
    lines = capsys.readouterr().out.splitlines()
    neck = [line.split() for line in lines if line.startswith('│ neck')]
    assert [line[4] for line in neck] == ['8', '16', '32', '64', '128']
    assert all(line[6] == '256' for line in neck)
    assert Image.open('f.png').size[0] > 0


def test_feature_maps_of_a_model():
    tool = load_module('visualization/feature_maps')
    image = np.random.RandomState(0).randint(256, size=(48, 70, 3), dtype=np.uint8)
    model = load_model(Config(dict(default_scope='mmpretrain', model=dict(
        type='ImageClassifier', data_preprocessor=dict(mean=[9.] * 3, std=[2.] * 3),
        backbone=dict(type='SwiftFormer', out_indices=(0, 1, 2, 3), arch=dict(
            embed_dims=[8, 12, 16, 20], depths=[1, 1, 1, 1]))))))
    x = model_input(model, image)
    maps = tool.feature_maps(model, x)
    with torch.no_grad():
        expected = model.backbone(x)
    assert list(maps) == [f'backbone {i}' for i in range(1, 5)]
    assert [stride for _, stride in maps.values()] == [4, 8, 16, 32]
    for (values, _), feature in zip(maps.values(), expected):
        assert (values == feature[0]).all()
    values = maps['backbone 1'][0]
    values[:] = 0
    values[3, 5, 5], values[6, 2:4, 2:4] = 3., 4.
    panels = tool.draw(image, maps, num_channels=2).axes
    assert [panel.get_title() for panel in panels[:4]] == [
        'backbone 1: stride 4\n8x12x18', 'norm\n0 to 4', 'channel 6\n0 to 4',
        'channel 3\n0 to 3']
    # 2 x 3 values of stride 32 on 48 x 70 pixels
    assert panels[-1].images[1].get_extent() == [-.5, 95.5, 63.5, -.5]


@pytest.mark.parametrize('path', [
    'cls/swiftformer_xs_300e.py', 'det/swiftformer_xs_maskrcnn_1x.py',
    'seg/swiftformer_xs_fpn_40k.py'])
def test_browse_dataset_of_every_task(tiny, config, path, capsys):
    browser.main([config(path), '--mini', '--num-samples', '2', '--split', 'val'])
    assert 'val: 4 samples of' in capsys.readouterr().out
    width, height = Image.open('dataset.png').size
    assert width > height * 1.5  # two in a row


def test_browse_dataset(tiny, config, fails, capsys):
    tool = browser.main
    args = [config('seg/swiftformer_xs_fpn_40k.py'), '--mini', '--out', 'd.png']
    tool([*args, '--num-samples', '3', '--columns', '2'])
    assert 'train: 8 samples of' in (printed := capsys.readouterr().out)
    assert '3 drawn' in printed
    width, height = Image.open('d.png').size
    assert width < height * 1.5  # two per row, two rows
    assert '8: the data set has samples 0 to 7' in fails(tool, *args, '--index', '8')
    assert 'ADE20K' in fails(tool, args[0])


def test_indices():
    assert browser.choose_indices(100, 3, None) == [0, 50, 99]
    assert browser.choose_indices(2, 5, None) == [0, 1]
    assert browser.choose_indices(10, 3, 7) == [7, 7, 7]
    with pytest.raises(InputError, match='10: the data set has samples 0 to 9'):
        browser.choose_indices(10, 3, 10)


@pytest.mark.parametrize('split', ['train', 'val'])
def test_segments_are_drawn_in_their_colors(tiny, config, split):
    generate_dataset('ade', num_train=8, num_val=4)
    cfg = load_config(config('seg/swiftformer_xs_fpn_40k.py'), mini=True)
    dataset = browser.build_dataset(cfg, split)
    visualizer = browser.build_visualizer(cfg.default_scope, dataset.metainfo)
    (image, sample), = browser.load_samples(dataset, [1])
    labels = sample.gt_sem_seg.data[0].numpy()
    # Annotations of a test are at the original size, not at the model's
    assert labels.shape == image.shape[:2]
    assert (labels.shape == sample.ori_shape) == (split == 'val')
    drawn = browser.draw_annotations(visualizer, image, sample)
    color = np.zeros((256, 3))
    color[:len(PALETTE['ade'])] = PALETTE['ade']
    expected = image / 2 + color[labels] / 2
    same = np.abs(drawn - expected).max(-1) <= 1
    assert 0.7 < same.mean() < 1  # names are written over the segments


def test_boxes_are_drawn_where_the_objects_are(tiny, config):
    generate_dataset('coco', num_train=8, num_val=4)
    cfg = load_config(config('det/swiftformer_xs_retinanet_1x.py'), mini=True)
    for split in ('train', 'val'):
        dataset = browser.build_dataset(cfg, split)
        assert dataset.metainfo['classes'] == CLASSES['coco']
        visualizer = browser.build_visualizer(cfg.default_scope, dataset.metainfo)
        (image, sample), = browser.load_samples(dataset, [0])
        drawn = browser.draw_annotations(visualizer, image, sample)
        changed = np.abs(drawn.astype(int) - image).max(-1) > 10
        boxes = sample.gt_instances.bboxes
        boxes = getattr(boxes, 'tensor', boxes).round().int().tolist()
        assert boxes
        inside = np.zeros_like(changed)
        for x1, y1, x2, y2 in boxes:
            near = changed[max(y1 - 1, 0):y2 + 2, max(x1 - 1, 0):x2 + 2]
            # the sides; those of another object may lie on them
            assert near[:, :3].any(1).mean() > 0.7 and near[:3].any(0).mean() > 0.7
            inside[max(y1 - 3, 0):y2 + 4, max(x1 - 3, 0):x2 + 4] = True
        assert changed[~inside].mean() < 0.1  # some of a label may stick out
