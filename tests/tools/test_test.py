import json
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

DET = 'det/soft_tiny_maskrcnn_1x.py'


@pytest.fixture
def trained(tiny, train, config):
    """Work dir of a short training of a detector."""
    train([config(DET), '--mini', '--work-dir', 'work', '--cfg-options',
           'train_cfg.max_epochs=1', 'log_level=ERROR'])
    return tiny / 'work'


def test_metrics_pictures_and_predictions(tiny, trained, test, fails, config):
    baseline = json.loads((trained / 'untrained.json').read_text())
    assert {'coco/bbox_mAP', 'coco/segm_mAP_50'} <= set(baseline)
    assert len(list((trained / 'predictions').iterdir())) == 4

    checkpoint = trained / 'epoch_1.pth'
    metrics = test([config(DET), str(checkpoint), '--mini', '--work-dir',
                    'tested', '--out', 'all.pkl', '--show-dir', 'shown'])
    assert set(metrics) == set(baseline)
    predictions = pickle.loads((tiny / 'all.pkl').read_bytes())
    assert len(predictions) == 4
    assert 'counts' in predictions[0]['pred_instances']['masks'][0]
    pictures = list((tiny / 'shown').iterdir())
    assert len(pictures) == 4
    width, height = Image.open(pictures[0]).size
    assert width > height  # the truth beside the prediction

    message = fails(test, config(DET), checkpoint, '--mini', '--tta')
    assert 'merges boxes only' in message
    broken = torch.load(checkpoint, weights_only=False)
    name = 'backbone.stages.0.blocks.0.mlp.fc1.weight'
    del broken['state_dict'][name]
    torch.save(broken, tiny / 'broken.pth')
    message = fails(test, config(DET), 'broken.pth', '--mini')
    assert name in message and '157 tensors; 1 tensors missing' in message


def test_wrong_arguments(tiny, test, fails, config):
    assert 'does not exist' in fails(test, config(DET), 'no.pth', '--mini')
    torch.save({'state_dict': {'weight': torch.zeros(2)}}, 'other.pth')
    assert 'pickle' in fails(test, config(DET), 'other.pth', '--mini', '--out',
                             'all.json')
    assert 'COCO 2017' in fails(test, config(DET), 'other.pth')
    assert 'does not fit the model' in fails(
        test, config(DET), 'other.pth', '--mini', '--work-dir', 'work')
    for option, message in (
            ('tta_model=5', 'tta_model is 5; expected a dict'),
            ('tta_model.type=X', 'cannot be built: KeyError: X'),
            ('test_evaluator.metric_items=[x]', "metric_items has 'x'; expected"),
            ('test_evaluator.prefix=5', 'test_evaluator.prefix is 5; expected text'),
            ('test_evaluator.collect_device=cuda', "has 'cuda'; expected one of"),
            ('test_evaluator=5', 'test_evaluator is 5; expected a dict')):
        assert message in fails(test, config(DET), 'other.pth', '--mini', '--tta',
                                '--work-dir', 'work', '--cfg-options', option)
    assert 'x.pkl/ names a folder' in fails(
        test, config(DET), 'other.pth', '--mini', '--out', 'x.pkl/')
    assert not (tiny / 'work').exists()


def test_segmentations_are_label_maps(tiny, train, test, config):
    name = 'seg/soft_tiny_fpn_80k.py'
    train([config(name), '--mini', '--work-dir', 'work', '--cfg-options',
           'train_cfg.max_iters=1', 'log_level=ERROR'])
    metrics = test([config(name), 'work/iter_1.pth', '--mini', '--out', 'all.pkl'])
    predictions = pickle.loads((tiny / 'all.pkl').read_bytes())
    assert len(predictions) == 4 and 'seg_logits' not in predictions[0]
    right = total = 0
    for sample in predictions:
        labels = sample['pred_sem_seg']['data'][0]
        truth = torch.from_numpy(np.array(Image.open(sample['seg_map_path'])))
        assert labels.shape == truth.shape
        known = truth > 0  # 0 is unlabelled
        right += (labels[known] == truth[known] - 1).sum().item()
        total += known.sum().item()
    assert metrics['aAcc'] == pytest.approx(100 * right / total, abs=0.01)
