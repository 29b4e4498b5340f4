"""Predictions of the tool are those of tools/test.py, on the same images."""
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import load_tool
from mmengine.logging import MMLogger
from mmengine.registry import DefaultScope
from PIL import Image

from mm_efficient.datasets.mini import CLASSES, prepare
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.inference import dataset_meta
from mm_efficient.runs.mini import MINI_DATA
from mm_efficient.runs.models import SHORT_SIDES, load_model

CONFIGS = dict(mmpretrain='cls/swiftformer_xs_300e.py',
               mmdet='det/swiftformer_xs_maskrcnn_1x.py',
               mmseg='seg/swiftformer_xs_fpn_40k.py')
FOLDERS = dict(mmpretrain='imagenet/val/circle', mmdet='coco/val2017',
               mmseg='ade/images/validation')


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


def reference(test, path, folder):
    """Predictions of tools/test.py, by name of the image."""
    prepare(MINI_DATA[load_config(path).default_scope], num_train=8, num_val=4)
    test([path, 'random.pth', '--mini', '--out', 'all.pkl', '--cfg-options',
          'log_level=ERROR'])
    DefaultScope._instance_dict.clear()
    found = pickle.loads(Path('all.pkl').read_bytes())
    return {Path(each['img_path']).name: each for each in found
            if Path(each['img_path']).parent.name == Path(folder).name}


@pytest.mark.parametrize('task', list(CONFIGS))
def test_same_as_tools_test(tiny, infer, test, config, task):
    path, folder = config(CONFIGS[task]), f'data/mini/{FOLDERS[task]}'
    save_random(path)
    expected = reference(test, path, folder)
    infer([folder, path, 'random.pth', '--mini', '--score-thr', '0', '--out-dir', 'out',
           '--device', 'cpu'])
    found = json.loads(Path('out/predictions.json').read_text())
    assert expected and set(found) == set(expected)
    assert {p.name for p in Path('out').iterdir() if p.is_file()} == {
        *expected, 'predictions.json'}
    names = CLASSES[MINI_DATA[task]]
    for name, each in expected.items():
        compare(task, each, found[name], names, Path('out/labels') / f'{name}.png')
        before, after = (np.array(Image.open(Path(p) / name).convert('RGB'))
                         for p in (folder, 'out'))
        if task != 'mmpretrain':  # small pictures are enlarged for the text
            assert before.shape == after.shape
        assert before.shape != after.shape or (before != after).any()


def compare(task, expected, found, names, label_file):
    if task == 'mmpretrain':
        scores, labels = expected['pred_score'].sort(descending=True)
        assert [c['name'] for c in found['classes']] == [names[i] for i in labels[:5]]
        assert [c['score'] for c in found['classes']] == pytest.approx(
            scores[:5].tolist(), abs=1e-4)
    elif task == 'mmseg':
        labels = expected['pred_sem_seg']['data'][0].numpy()
        assert (np.array(Image.open(label_file)) == labels).all()
        for name, share in found['shares'].items():
            assert share == pytest.approx((labels == names.index(name)).mean(),
                                          abs=1e-4)
    else:
        instances = expected['pred_instances']
        objects = found['objects']
        assert len(objects) == len(instances['scores']) > 0
        for each, label, score, box, mask in zip(objects, *(
                instances[key] for key in ('labels', 'scores', 'bboxes', 'masks'))):
            assert each['name'] == names[label]
            assert each['score'] == pytest.approx(score.item(), abs=1e-4)
            assert each['box'] == pytest.approx(box.tolist(), abs=0.1)
            assert each['mask']['counts'].encode() == mask['counts']


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
    Image.new('RGB', (64, 64)).save('photo.jpg')
    assert 'none.jpg does not exist' in fails(infer, 'none.jpg', path, 'a.pth')
    assert 'Checkpoint a.pth does not exist' in fails(infer, 'photo.jpg', path, 'a.pth')
    assert 'where the photographs are' in fails(
        infer, 'photo.jpg', path, 'a.pth', '--out-dir', '.')
    torch.save({'state_dict': {'weight': torch.zeros(2)}}, 'other.pth')
    assert 'does not fit the model' in fails(infer, 'photo.jpg', path, 'other.pth')
    save_random(path)
    assert 'cannot be loaded' in fails(infer, 'photo.jpg', path, 'random.pth', '--mini',
                                       '--device', 'cuda:99')
    Path('notes.jpg').write_text('no picture')
    assert 'notes.jpg is not an image' in fails(infer, 'notes.jpg', path, 'random.pth')


def test_sizes_of_tasks():
    assert set(SHORT_SIDES) == set(CONFIGS)
