"""Rotated boxes: against OpenCV's polygons, and axis-aligned operators."""
import cv2
import numpy as np
import pytest
import torch
from mmcv import ops


def random_boxes(number, seed):
    """Boxes of 5 to 40 pixels, close to each other, of any angle."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([40, 40, 35, 35, 2 * np.pi])
    start = torch.tensor([0, 0, 5, 5, -np.pi])
    return torch.rand(number, 5, generator=generator) * scale + start


def opencv_iou(box1, box2, over_first=False):
    rectangles = [((x, y), (w, h), np.degrees(angle)) for x, y, w, h, angle in
                  (box1.tolist(), box2.tolist())]
    _, polygon = cv2.rotatedRectangleIntersection(*rectangles)
    inner = 0 if polygon is None else cv2.contourArea(cv2.convexHull(polygon))
    area1, area2 = (box[2] * box[3] for box in (box1, box2))
    return float(inner / (area1 if over_first else area1 + area2 - inner))


@pytest.mark.parametrize('mode', ['iou', 'iof'])
def test_iou_agrees_with_opencv(mode):
    boxes1, boxes2 = random_boxes(12, 0), random_boxes(9, 1)
    expected = torch.tensor([[opencv_iou(a, b, mode == 'iof') for b in boxes2]
                             for a in boxes1])
    assert (expected == 0).any() and (expected > 0.3).any()
    ious = ops.box_iou_rotated(boxes1, boxes2, mode)
    torch.testing.assert_close(ious, expected, rtol=0, atol=2e-5)
    aligned = ops.box_iou_rotated(boxes1[:9], boxes2, mode, aligned=True)
    torch.testing.assert_close(aligned, ious[:9].diagonal())
    flipped = [boxes * torch.tensor([1, -1, 1, 1, -1]) for boxes in (boxes1, boxes2)]
    torch.testing.assert_close(ops.box_iou_rotated(*flipped, mode), ious)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_common_edges_and_corners(dtype):
    """Where rounding decides which side of an edge a corner is on."""
    angle = torch.linspace(0, np.pi, 37, dtype=dtype)
    boxes = torch.stack([angle * 0 + 1000, angle * 0 + 500, angle * 0 + 60,
                         angle * 0 + 20, angle], 1)
    moved = boxes.clone()
    along = torch.stack([angle.cos(), angle.sin()], 1)
    moved[:, :2] += along * 30
    turned = boxes[:, [0, 1, 3, 2, 4]] + torch.tensor([0, 0, 0, 0, np.pi / 2])
    beside = boxes.clone()
    beside[:, :2] += along * 60
    inside = boxes.clone()
    inside[:, :2] -= along * 15
    inside[:, 2] = 30
    for other, expected in [(boxes, 1), (moved, 1 / 3), (turned.to(dtype), 1),
                            (beside, 0), (inside, 0.5)]:
        ious = ops.box_iou_rotated(boxes, other, aligned=True)
        torch.testing.assert_close(
            ious, torch.full_like(ious, expected), rtol=0, atol=2e-4)


def test_boxes_without_area_overlap_nothing():
    boxes = torch.tensor([[5., 5, 0, 4, 0.3], [5, 5, 4, 4, 0]])
    assert ops.box_iou_rotated(boxes, boxes).tolist() == [[0, 0], [0, 1]]
    assert ops.box_iou_rotated(boxes[:0], boxes).shape == (0, 2)


@pytest.mark.parametrize('with_labels', [False, True])
def test_nms_keeps_what_no_better_box_covers(with_labels):
    boxes = random_boxes(60, 2)
    scores = torch.rand(60, generator=torch.Generator().manual_seed(3))
    labels = torch.arange(60) % 2 if with_labels else None
    dets, keep = ops.nms_rotated(boxes, scores, 0.2, labels)
    with torch.device('meta'):  # the default device does not matter
        assert torch.equal(ops.nms_rotated(boxes, scores, 0.2, labels)[1], keep)
    expected = []
    for i in scores.argsort(descending=True).tolist():
        if all(opencv_iou(boxes[i], boxes[j]) <= 0.2
               or with_labels and i % 2 != j % 2 for j in expected):
            expected.append(i)
    assert keep.tolist() == expected and len(expected) < 60
    assert torch.equal(dets, torch.cat([boxes, scores[:, None]], 1)[keep])


def test_gradient_of_the_iou_loss():
    """mmcv computes the IoU from the corners that the operator sorts."""
    boxes1 = random_boxes(20, 4).double().requires_grad_()
    boxes2 = (boxes1 + torch.rand(20, 5)).detach()  # a rotated overlap each
    ious = ops.diff_iou_rotated_2d(boxes1[None], boxes2[None])[0]
    expected = ops.box_iou_rotated(boxes1.detach(), boxes2, aligned=True)
    assert expected.min() > 0
    torch.testing.assert_close(ious.detach(), expected, rtol=0, atol=1e-6)
    assert torch.autograd.gradcheck(
        lambda x: ops.diff_iou_rotated_2d(x[None], boxes2[None]), boxes1,
        eps=1e-7, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize('sampling_ratio', [0, 2])
@pytest.mark.parametrize('aligned', [False, True])
def test_roi_align_of_boxes_turned_by_right_angles(aligned, sampling_ratio):
    torch.manual_seed(0)
    features = torch.rand(2, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    boxes = torch.tensor([[0, 10., 12, 40, 60], [1, -5, 3, 30, 33], [1, 5, 5, 9, 9]])
    boxes = boxes.double()
    settings = (0.25, sampling_ratio)
    expected = ops.roi_align(features, boxes, (4, 3), *settings, 'avg', aligned)
    centre, size = (boxes[:, 1:3] + boxes[:, 3:]) / 2, boxes[:, 3:] - boxes[:, 1:3]
    rois = torch.cat([boxes[:, :1], centre, size, boxes[:, :1] * 0], 1)
    output = ops.roi_align_rotated(features, rois, (4, 3), *settings, aligned, True)
    torch.testing.assert_close(output, expected)
    gradient = torch.rand_like(output)
    found, wanted = (torch.autograd.grad(y, features, gradient)[0]
                     for y in (output, expected))
    torch.testing.assert_close(found, wanted)
    # A quarter turn of box and bins: from left to right becomes from top to bottom
    rois = torch.cat([boxes[:, :1], centre, size.flip(1), boxes[:, :1] * 0 + np.pi / 2],
                     1)
    turned = ops.roi_align_rotated(features, rois, (3, 4), *settings, aligned, True)
    torch.testing.assert_close(turned, expected.transpose(2, 3).flip(2))
    rois[:, 5] *= -1
    turned = ops.roi_align_rotated(features, rois, (3, 4), *settings, aligned, False)
    torch.testing.assert_close(turned, expected.transpose(2, 3).flip(2))


def test_roi_align_without_rois():
    features = torch.rand(1, 2, 8, 8, requires_grad=True)
    output = ops.roi_align_rotated(features, torch.zeros(0, 6), (2, 2), 1., 2, True)
    output.sum().backward()
    assert output.shape == (0, 2, 2, 2) and not features.grad.any()
