"""NMS in its forms, against mmcv's compiled operators and the definition."""
import numpy as np
import pytest
import torch
from mmcv import ops
from recorded import HALF, cases


def random_boxes(num, size=60, seed=0):
    """Boxes with whole coordinates, so that overlaps are simple fractions."""
    generator = torch.Generator().manual_seed(seed)
    corners = torch.randint(size, (num, 2), generator=generator)
    extent = torch.randint(1, 20, (num, 2), generator=generator)
    return torch.cat([corners, corners + extent], dim=1).float()


@pytest.mark.parametrize('case', cases('nms'))
def test_nms_as_recorded(case, arrays):
    name = case['case']
    dets, keep = ops.nms(arrays[f'{name}/boxes'], arrays[f'{name}/scores'],
                         case['iou_threshold'], case['offset'])
    assert torch.equal(keep, arrays[f'{name}/keep'])
    assert torch.equal(dets, arrays[f'{name}/dets'])


@pytest.mark.parametrize('case', cases('batched_nms'))
def test_batched_nms_as_recorded(case, arrays):
    boxes, scores, idxs, dets, keep = (
        arrays[f"{case['case']}/{name}"]
        for name in ('boxes', 'scores', 'idxs', 'dets', 'keep'))
    result = ops.batched_nms(boxes, scores, idxs, case['nms_cfg'])
    assert torch.equal(result[1], keep)
    assert torch.equal(result[0], dets)


def greedy_nms(boxes, scores, threshold, offset):
    """The definition, in NumPy's float32 as in mmcv's C++."""
    boxes, threshold = boxes.numpy(), np.float32(threshold)
    left = list(scores.argsort(descending=True).tolist())
    keep = []
    while left:
        best = left.pop(0)
        keep.append(best)
        size = boxes[:, 2:] - boxes[:, :2] + np.float32(offset)
        corner = np.minimum(boxes[best, 2:], boxes[:, 2:])
        inner = corner - np.maximum(boxes[best, :2], boxes[:, :2])
        inner = np.maximum(inner + np.float32(offset), 0).prod(1)
        union = size[best].prod() + size.prod(1) - inner
        left = [i for i in left if not inner[i] / union[i] > threshold]
    return keep


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('threshold', [0.1, 0.3, 0.5, 0.7])
def test_nms_is_greedy(threshold, offset):
    boxes = random_boxes(150)
    scores = torch.randperm(150, generator=torch.Generator().manual_seed(1)) / 150
    keep = ops.nms(boxes, scores, threshold, offset)[1]
    assert keep.tolist() == greedy_nms(boxes, scores, threshold, offset)
    with torch.device('meta'):  # the default device does not matter
        assert torch.equal(ops.nms(boxes, scores, threshold, offset)[1], keep)


def test_nms_compares_with_the_threshold_in_float32():
    boxes = torch.tensor([[0., 0, 10, 10], [0, 0, 3, 10]])  # overlap exactly 0.3
    keep = ops.nms(boxes, torch.tensor([0.9, 0.8]), 0.3)[1]
    assert keep.tolist() == [0, 1]


@pytest.mark.parametrize('dtype', HALF)
def test_nms_in_half_precision_is_that_of_the_rounded_boxes(dtype):
    boxes, scores = random_boxes(80).to(dtype), (torch.arange(80) / 80).to(dtype)
    dets, keep = ops.nms(boxes, scores, 0.4)
    order = ops.nms(boxes.float(), scores.float(), 0.4)[1]
    assert torch.equal(scores[keep], scores[order])  # ties may change places
    assert dets.dtype == dtype and len(keep) < 80
