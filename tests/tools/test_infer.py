"""Predictions of the tool are those of tools/test.py, on the same images."""
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from loading import load_tool
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from PIL import Image

from mm_efficient.datasets.mini import CLASSES, generate_dataset
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.inference import dataset_meta
from mm_efficient.runs.mini import MINI_DATA
from mm_efficient.runs.models import SHORT_SIDES, load_model

CONFIGS = dict(mmpretrain='cls/swiftformer_xs_300e.py',
               mmdet='det/swiftformer_xs_maskrcnn_1x.py',
               mmseg='seg/swiftformer_xs_fpn_40k.py')
FOLDERS = dict(mmpretrain='imagenet/val/circle', mmdet='coco/val2017',
               mmseg='ade/images/validation')

# Options; few detections, because they take time to draw
OPTIONS = dict(mmpretrain=[], mmdet=['model.test_cfg.rcnn.max_per_img=8'], mmseg=[])


@pytest.fixture
def infer():
    return load_tool('infer')


def save_random(path, classes=None):
    """A checkpoint of random weights for the miniature data set."""
    cfg = load_config(path, mini=True)
    MMLogger.get_current_instance().setLevel('ERROR')
    model = load_model(cfg)
    meta = dict(dataset_meta=dict(classes=classes)) if classes else {}
    torch.save(dict(state_dict=model.state_dict(), meta=meta), 'random.pth')
    DefaultScope._instance_dict.clear()


def reference(test, task, path, folder):
    """Predictions of tools/test.py, by name of the image."""
    generate_dataset(MINI_DATA[task], num_train=8, num_val=4)
    test([path, 'random.pth', '--mini', '--out', 'all.pkl', '--cfg-options',
          'log_level=ERROR', *OPTIONS[task]])
    DefaultScope._instance_dict.clear()
    found = pickle.loads(Path('all.pkl').read_bytes())
    return {Path(each['img_path']).name: each for each in found
            if Path(each['img_path']).parent.name == Path(folder).name}


@pytest.mark.parametrize('task', list(CONFIGS))
def test_same_as_tools_test(tiny, infer, test, config, task):
    path, folder = config(CONFIGS[task]), f'data/mini/{FOLDERS[task]}'
    save_random(path)
    expected = reference(test, task, path, folder)
    infer([folder, path, 'random.pth', '--mini', '--score-thr', '0', '--out-dir', 'out',
           '--device', 'cpu', '--cfg-options', 'log_level=ERROR', *OPTIONS[task]])
    found = json.loads(Path('out/predictions.json').read_text())
    assert expected and set(found['images']) == set(expected)
    assert found['classes'] == list(CLASSES[MINI_DATA[task]])
    suffix = '.png' if task == 'mmpretrain' else ''
    assert {path.name for path in Path('out/vis').iterdir()} == {
        name + suffix for name in expected}
    for name, each in expected.items():
        compare(task, each, found['images'][name], found['classes'])
        before, after = (np.array(Image.open(file).convert('RGB')) for file in (
            Path(folder, name), Path('out/vis', name + suffix)))
        # Classified images are enlarged for the text
        assert min(after.shape[:2]) == (480 if task == 'mmpretrain' else
                                        min(before.shape[:2]))
        assert before.shape != after.shape or (before != after).any()


def compare(task, expected, found, names):
    if task == 'mmpretrain':
        scores = expected['pred_score']
        assert found['pred_scores'] == pytest.approx(scores.tolist(), abs=1e-6)
        assert found['pred_label'] == scores.argmax()
        assert found['pred_score'] == pytest.approx(scores.max().item(), abs=1e-6)
        assert found['pred_class'] == names[scores.argmax()]
    elif task == 'mmseg':
        labels = expected['pred_sem_seg']['data'][0].numpy()
        assert (np.array(Image.open(Path('out', found['sem_seg']))) == labels).all()
        assert sum(found['shares'].values()) == pytest.approx(1)
        for name, share in found['shares'].items():
            assert share == pytest.approx((labels == names.index(name)).mean())
    else:
        instances = expected['pred_instances']
        assert found['labels'] == instances['labels'].tolist() != []
        for key in ('scores', 'bboxes'):
            np.testing.assert_allclose(found[key], instances[key], atol=1e-4)
        assert [mask['counts'].encode() for mask in found['masks']] == [
            mask['counts'] for mask in instances['masks']]


def test_images_with_similar_names(tiny, infer, config, capsys):
    path = config(CONFIGS['mmpretrain'])
    save_random(path, classes=CLASSES['imagenet'])
    names = ('a.jpg', 'a.png', 'b.1.png', 'b.2.png')
    Path('images').mkdir()
    for name in names:
        Image.new('RGB', (64, 64)).save(Path('images', name))
    infer(['images', path, 'random.pth', '--mini', '--device', 'cpu'])
    assert {file.name for file in Path('predictions/vis').iterdir()} == {
        f'{name}.png' for name in names}
    *lines, written = capsys.readouterr().out.splitlines()[-5:]
    assert [line.split(': ')[0] for line in lines] == list(names)
    assert all(line.split()[1] in CLASSES['imagenet'] for line in lines)
    assert written == 'written: predictions (predictions.json, vis/)'


def test_class_names(config):
    cfg = load_config(config(CONFIGS['mmdet']))
    assert dataset_meta(cfg, {})['classes'][:2] == ('person', 'bicycle')
    own = tuple('abcdefgh' * 10)
    trained = dict(meta=dict(dataset_meta=dict(CLASSES=own)))
    assert dataset_meta(cfg, trained)['classes'] == own
    assert dataset_meta(cfg, dict(meta=dict(CLASSES=own)))['classes'] == own
    cfg = load_config(config(CONFIGS['mmdet']), num_classes=3)
    assert dataset_meta(cfg, trained)['classes'] == ('class 0', 'class 1', 'class 2')
    cfg = load_config(config(CONFIGS['mmseg']))
    meta = dataset_meta(cfg, {})
    assert meta['classes'][2] == 'sky' and len(meta['palette']) == 150
    names = dataset_meta(load_config(config(CONFIGS['mmpretrain'])), {})['classes']
    assert names[0].startswith('tench') and len(names) == 1000


def test_wrong_arguments(tiny, infer, fails, config):
    path = config(CONFIGS['mmpretrain'])
    Image.new('RGB', (64, 64)).save('image.jpg')
    assert 'none.jpg does not exist' in fails(infer, 'none.jpg', path, 'a.pth')
    assert 'Checkpoint a.pth does not exist' in fails(infer, 'image.jpg', path, 'a.pth')
    Path('vis').mkdir()
    Image.new('RGB', (64, 64)).save('vis/image.jpg')
    assert '--out-dir . would overwrite the images in vis' in fails(
        infer, 'vis', path, 'a.pth', '--out-dir', '.')
    Path('file').write_text('')
    assert 'The folder file cannot be written' in fails(
        infer, 'image.jpg', path, 'a.pth', '--out-dir', 'file')
    torch.save({'state_dict': {'weight': torch.zeros(2)}}, 'other.pth')
    assert 'does not fit the model' in fails(infer, 'image.jpg', path, 'other.pth')
    save_random(path)
    assert 'cannot be loaded' in fails(infer, 'image.jpg', path, 'random.pth', '--mini',
                                       '--device', 'cuda:99')
    assert not Path('predictions/predictions.json').exists()
    Path('notes.jpg').write_text('no image')
    assert 'notes.jpg is not an image' in fails(infer, 'notes.jpg', path, 'random.pth')
    Image.new('I;16', (64, 64)).save('deep.png')  # the test pipeline reads images
    assert 'deep.png has more than 8 bits' in fails(
        infer, 'deep.png', path, 'random.pth', '--mini', '--device', 'cpu')
    assert not Path('predictions').exists()
    for option, message in (
            ('test_dataloader=None', 'sets no test_dataloader'),
            ('test_dataloader.dataset.type=X', "dataset.type is 'X'"),
            ('test_dataloader.dataset.metainfo.classes=5', 'a list of names')):
        assert message in fails(infer, 'image.jpg', path, 'random.pth', '--mini',
                                '--cfg-options', option)


def test_images_that_cannot_be_predicted_are_left_out(tiny, infer, fails, config):
    path = config(CONFIGS['mmpretrain'])
    save_random(path, classes=CLASSES['imagenet'])
    Path('images').mkdir()
    Image.new('RGB', (3, 900)).save('images/strip.png')
    Image.effect_noise((64, 64), 50).save('images/a.png')
    Image.effect_noise((64, 64), 50).save('images/b.jpg')
    Path('images/b.jpg').write_bytes(Path('images/b.jpg').read_bytes()[:1000])
    message = fails(infer, 'images', path, 'random.pth', '--mini', '--device', 'cpu')
    assert message.startswith('error: 1 of 3 images are left out: images/b.jpg cannot')
    found = json.loads(Path('predictions/predictions.json').read_text())['images']
    assert set(found) == {'strip.png', 'a.png'}


def test_sizes_of_tasks():
    assert set(SHORT_SIDES) == set(CONFIGS)
