"""Classification heads."""
import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.nn import functional as F

import mm_efficient  # noqa: F401


@pytest.fixture
def head():
    torch.manual_seed(0)
    head = MODELS.build(dict(type='DistilledClsHead', num_classes=5, in_channels=6))
    head.init_weights()
    return head


@pytest.fixture
def feats():
    torch.manual_seed(1)
    return None, torch.randn(4, 6, 3, 2)


def test_distilled_head_averages_in_evaluation(head, feats):
    pooled = F.batch_norm(feats[1], torch.zeros(6), torch.ones(6)).mean((2, 3))
    head.eval()
    expected = (head.fc(pooled) + head.fc_dist(pooled)) / 2
    torch.testing.assert_close(head(feats), expected)
    assert not head.fc.weight.equal(head.fc_dist.weight)
    prediction = head.predict(feats)[2]
    torch.testing.assert_close(prediction.pred_score, expected[2].softmax(0))


def test_distilled_head_trains_both_classifiers(head, feats):
    logits, dist_logits = head(feats)
    assert not logits.allclose(dist_logits)
    labels = torch.tensor([0, 4, 2, 2])
    samples = [DataSample().set_gt_label(label) for label in labels]
    losses = head.loss(feats, samples)
    assert losses.keys() == {'loss_cls', 'loss_dist'}
    torch.testing.assert_close(losses['loss_cls'], F.cross_entropy(logits, labels) / 2)
    torch.testing.assert_close(losses['loss_dist'],
                               F.cross_entropy(dist_logits, labels) / 2)
    sum(losses.values()).backward()
    assert all(p.grad.abs().sum() > 0 for p in head.parameters())
