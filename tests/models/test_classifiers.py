import copy

import pytest
import torch
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch.nn import functional as F

from mm_efficient.models.classifiers import build_teacher
from mm_efficient.weights.conversion import CheckpointError

LABELS = torch.tensor([0, 2, 2])


def image_classifier(kind, **settings):
    torch.manual_seed(0)
    return MODELS.build(dict(
        type=kind,
        backbone=dict(
            type='SwiftFormer', arch=dict(embed_dims=[4] * 4, depths=[1] * 4)),
        **settings))


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return (torch.randn(3, 3, 32, 32),
            [DataSample().set_gt_label(label) for label in LABELS])


@pytest.fixture
def teacher(tmp_path):
    cfg = dict(type='TimmClassifier', model_name='resnet10t', num_classes=5)
    torch.manual_seed(2)
    model = MODELS.build(cfg)
    for norm in model.modules():  # labels of its own, in evaluation mode
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.weight.data.uniform_(0.5, 1.5)
    torch.save(dict(model=model.state_dict()), tmp_path / 'teacher.pth')
    return dict(cfg, checkpoint=str(tmp_path / 'teacher.pth')), model.eval()


def distilled(teacher):
    return image_classifier(
        'DistilledClassifier', teacher=teacher,
        head=dict(type='DistilledClsHead', num_classes=5, in_channels=4))


def test_the_teacher_labels_the_images_for_the_second_classifier(teacher, batch):
    cfg, model = teacher
    student = distilled(cfg)
    losses = student.loss(*batch)
    feats = student.extract_feat(batch[0])
    logits, dist_logits = student.head(feats)
    with torch.no_grad():
        labels = model(batch[0]).argmax(1)
    assert labels.tolist() != LABELS.tolist()
    torch.testing.assert_close(losses['loss_cls'], F.cross_entropy(logits, LABELS) / 2)
    torch.testing.assert_close(losses['loss_dist'],
                               F.cross_entropy(dist_logits, labels) / 2)


def test_the_teacher_is_no_part_of_the_model(teacher, batch):
    student = distilled(teacher[0])
    before = list(student.state_dict()), len(list(student.parameters()))
    student.loss(*batch)
    assert (list(student.state_dict()), len(list(student.parameters()))) == before
    held = student._teacher.module
    assert copy.deepcopy(student)._teacher.module is held
    student.train()
    assert not any(module.training for module in held.modules())
    assert not any(parameter.requires_grad for parameter in held.parameters())


def test_without_a_teacher_both_learn_the_labels(batch):
    student = distilled(None)
    logits = student.head(student.extract_feat(batch[0]))[1]
    torch.testing.assert_close(student.loss(*batch)['loss_dist'],
                               F.cross_entropy(logits, LABELS) / 2)


def test_a_teacher_of_mmpretrain(tmp_path):
    cfg = dict(type='ImageClassifier', backbone=dict(type='LeNet5', num_classes=5),
               head=dict(type='ClsHead'))
    weights = MODELS.build(cfg).state_dict()
    torch.save(dict(state_dict=weights), tmp_path / 'lenet.pth')
    teacher = build_teacher(dict(cfg, checkpoint=str(tmp_path / 'lenet.pth')))
    torch.testing.assert_close(dict(teacher.state_dict()), dict(weights))


@pytest.mark.parametrize('change, message', [
    (lambda w: w.pop('fc.bias'), '1 tensors missing: fc.bias'),
    (lambda w: w.update(extra=torch.zeros(1)), '1 tensors unexpected: extra'),
    (lambda w: w.update({'fc.bias': torch.zeros(7)}), r'fc.bias \(7,\) for \(5,\)')])
def test_weights_of_the_teacher_fit_or_are_refused(teacher, change, message):
    cfg = teacher[0]
    weights = torch.load(cfg['checkpoint'])['model']
    change(weights)
    torch.save(weights, cfg['checkpoint'])
    with pytest.raises(CheckpointError, match=message):
        build_teacher(cfg)


def test_missing_weights_of_the_teacher(batch):
    student = distilled(dict(type='TimmClassifier', model_name='resnet10t',
                             num_classes=5, checkpoint='nowhere.pth'))
    with pytest.raises(CheckpointError, match='nowhere.pth: no such file'):
        student.loss(*batch)


def test_mesa_learns_from_the_average(batch):
    model = image_classifier(
        'MESAClassifier', neck=dict(type='GlobalAveragePooling'),
        head=dict(type='LinearClsHead', num_classes=5, in_channels=4))
    alone = model.loss(*batch)
    averaged = copy.deepcopy(model).eval()
    torch.nn.init.normal_(averaged.head.fc.weight)
    model.mesa = (averaged, 2.)
    losses = model.loss(*batch)
    assert losses.keys() == {'loss', 'loss_mesa'}
    torch.testing.assert_close(losses['loss'], alone['loss'])
    p = model.forward(batch[0]).sigmoid()
    q = averaged(batch[0]).sigmoid()
    expected = -(q * p.log() + (1 - q) * (1 - p).log()).mean()
    torch.testing.assert_close(losses['loss_mesa'], 2 * expected)
    losses['loss_mesa'].backward()
    assert averaged.head.fc.weight.grad is None
    assert model.head.fc.weight.grad.abs().sum() > 0


def test_smoothed_binary_cross_entropy():
    torch.manual_seed(0)
    loss = MODELS.build(dict(type='SmoothedBCELoss', label_smooth_val=0.1))
    logits, label = torch.randn(2, 4), torch.tensor([1, 3])
    target = torch.tensor([[.025, .925, .025, .025], [.025, .025, .025, .925]])
    p = logits.sigmoid()
    expected = -(target * p.log() + (1 - target) * (1 - p).log()).mean()
    torch.testing.assert_close(loss(logits, label, avg_factor=2), expected)
    scores = torch.eye(4)[label]
    torch.testing.assert_close(loss(logits, scores), expected)
    mixed = loss(logits, (scores + scores.flip(0)) / 2)
    torch.testing.assert_close(mixed, (expected + loss(logits, scores.flip(0))) / 2)
