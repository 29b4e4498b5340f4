import json
import pickle

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

    broken = torch.load(checkpoint, weights_only=False)
    name = 'backbone.stages.0.blocks.0.mlp.fc1.weight'
    del broken['state_dict'][name]
    torch.save(broken, tiny / 'broken.pth')
    message = fails(test, config(DET), 'broken.pth', '--mini')
    assert name in message and '1 tensors are missing' in message


def test_wrong_arguments(tiny, test, fails, config):
    assert 'does not exist' in fails(test, config(DET), 'no.pth', '--mini')
    torch.save({'state_dict': {'weight': torch.zeros(2)}}, 'other.pth')
    assert 'pickle' in fails(test, config(DET), 'other.pth', '--mini', '--out',
                             'all.json')
    assert 'COCO 2017' in fails(test, config(DET), 'other.pth')
    assert 'does not fit the model' in fails(
        test, config(DET), 'other.pth', '--mini', '--work-dir', 'work')
