import json

import numpy as np
import pytest
from conftest import load_tool
from PIL import Image

from mm_efficient.datasets.mini import CLASSES, PALETTE, generate_dataset
from mm_efficient.errors import InputError
from mm_efficient.runs.configs import load_config
from mm_efficient.visualization.datasets import (
    build_dataset,
    build_visualizer,
    choose_indices,
    deliver,
    draw_truth,
)


@pytest.fixture
def photo(tmp_path):
    """A photograph-like image, wider than high."""
    y, x = np.mgrid[:96, :140]
    pixels = np.stack([x, 2 * y, x + y], -1).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / 'photo.jpg')
    return str(tmp_path / 'photo.jpg')


def test_attention_maps(tiny, photo, config, fails, capsys):
    tool = load_tool('visualization/attention_maps')
    args = [photo, config('cls/ecoformer_pvt_b0_30e.py'), '--mini', '--size', '96']
    tool([*args, '--out', 'a.png', '--stages', '2', '4', '--heads', '2'])
    printed = capsys.readouterr().out
    assert 'stage 2, block 2: similarity of hash codes, 2 head(s) of 12 x 18' in printed
    assert 'stage 4, block 2: softmax of the token, 8 head(s) of 3 x 5' in printed
    width, height = Image.open('a.png').size  # two lines of four panels
    assert width / height == pytest.approx(4 * 3 * 140 / 96 / (2 * 3.35), rel=0.01)
    assert 'at least 25 tokens' in fails(tool, *args, '--size', '64')
    assert 'outside the photograph, which is 140 wide' in fails(
        tool, *args, '--token', '140', '10')
    args[1] = config('cls/lowformer_b0_300e.py')
    assert 'no attention in stages [1]; this LowFormer has it in [3, 4]' in fails(
        tool, *args, '--stages', '1')
    assert 'has to end with' in fails(tool, *args, '--out', 'a.doc')


def test_feature_maps(tiny, photo, config, capsys):
    tool = load_tool('visualization/feature_maps')
    tool([photo, config('det/swiftformer_xs_retinanet_1x.py'), '--mini', '--size', '64',
          '--out', 'f.png', '--channels', '1'])
    lines = capsys.readouterr().out.splitlines()
    neck = [line.split() for line in lines if line.startswith('│ neck')]
    assert [line[4] for line in neck] == ['8', '16', '32', '64', '128']
    assert all(line[6] == '256' for line in neck)
    assert Image.open('f.png').size[0] > 0


def test_browse_dataset(tiny, config, fails, capsys):
    tool = load_tool('visualization/browse_dataset')
    args = [config('seg/swiftformer_xs_fpn_40k.py'), '--mini', '--out', 'd.png']
    tool([*args, '--number', '3', '--columns', '2'])
    assert 'train: 8 samples of' in (printed := capsys.readouterr().out)
    assert '3 shown' in printed
    width, height = Image.open('d.png').size
    assert width < height * 1.5  # two in a line, two lines
    assert 'samples 0 to 7, not 8' in fails(tool, *args, '--index', '8')
    assert 'ADE20K' in fails(tool, args[0])


def test_plot_logs(tmp_path, fails, capsys):
    tool = load_tool('visualization/plot_logs')
    log = tmp_path / 'run' / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('\n'.join(json.dumps(dict(loss=1 / i, iter=i, step=i))
                             for i in range(1, 9)))
    out = tmp_path / 'c.png'
    tool([str(tmp_path / 'run'), '--out', str(out), '--names', 'mine'])
    row = next(line for line in capsys.readouterr().out.splitlines() if 'mine' in line)
    assert [cell.strip() for cell in row.strip('│').split('│')] == [
        'mine', 'loss', '0.125', 'iteration 8', '0.125', '1']
    assert out.exists()
    tool([str(tmp_path / 'run'), '--list'])
    assert capsys.readouterr().out == 'loss\n'
    assert "no run has 'x'" in fails(tool, tmp_path / 'run', '--keys', 'x')


def test_indices():
    assert choose_indices(100, 3) == [0, 50, 99]
    assert choose_indices(2, 5) == [0, 1]
    assert choose_indices(10, 3, 7) == [7, 7, 7]
    with pytest.raises(InputError, match='samples 0 to 9, not 10'):
        choose_indices(10, 3, 10)


@pytest.mark.parametrize('part', ['train', 'val'])
def test_segments_are_drawn_in_their_colours(tiny, config, part):
    generate_dataset('ade', num_train=8, num_val=4)
    cfg = load_config(config('seg/swiftformer_xs_fpn_40k.py'), mini=True)
    dataset = build_dataset(cfg, part)
    visualizer = build_visualizer(cfg, dataset.metainfo)
    (image, sample), = deliver(dataset, [1])
    labels = sample.gt_sem_seg.data[0].numpy()
    # Annotations of a test are at the original size, not at the model's
    assert labels.shape == image.shape[:2]
    assert (labels.shape == sample.ori_shape) == (part == 'val')
    picture = draw_truth(visualizer, image, sample)
    color = np.zeros((256, 3))
    color[:len(PALETTE['ade'])] = PALETTE['ade']
    expected = image / 2 + color[labels] / 2
    same = np.abs(picture - expected).max(-1) <= 1
    assert 0.8 < same[:, labels.shape[1] // 2:].mean()  # the legend is on the left
    assert not same.all()


def test_boxes_are_drawn_where_the_objects_are(tiny, config):
    generate_dataset('coco', num_train=8, num_val=4)
    cfg = load_config(config('det/swiftformer_xs_retinanet_1x.py'), mini=True)
    for part in ('train', 'val'):
        dataset = build_dataset(cfg, part)
        assert dataset.metainfo['classes'] == CLASSES['coco']
        visualizer = build_visualizer(cfg, dataset.metainfo)
        (image, sample), = deliver(dataset, [0])
        picture = draw_truth(visualizer, image, sample)
        changed = np.abs(picture.astype(int) - image).max(-1) > 10
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
