"""Non-maximum suppression in three forms."""
import torch
from torch import Tensor

from .common import at_least_float32


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Greedy NMS, as ``mmcv._ext.nms``.

    Args:
        boxes (Tensor): Corners x1, y1, x2, y2, (N, 4).
        scores (Tensor): One score per box, (N, ).
        iou_threshold (float): Boxes whose IoU with a better box is larger are removed.
        offset (int): 0 or 1; a box is ``x2 - x1 + offset`` wide.

    Returns:
        Tensor: Indices of the kept boxes, int64, best score first.
    """
    from torchvision.ops import nms as torchvision_nms
    # mmcv's sort is not stable. The same call visits boxes of equal score in the same
    # order.
    order = scores.sort(0, descending=True)[1]
    boxes = at_least_float32(boxes)[order]
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    rank = torch.arange(
        len(boxes), 0, -1, dtype=boxes.dtype, device=boxes.device)
    # mmcv compares in float32, torchvision in float64: for an IoU of exactly 0.3 they
    # would decide differently.
    iou_threshold = torch.tensor(
        iou_threshold, dtype=torch.float32, device='cpu').item()
    return order[torchvision_nms(boxes, rank, iou_threshold)]


def softnms(boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float,
            sigma: float, min_score: float, method: int, offset: int) -> Tensor:
    """Soft-NMS, as ``mmcv._ext.softnms``: overlapping boxes lose score.

    Of equal scores the box with the smaller index comes first.

    Args:
        boxes (Tensor): Corners x1, y1, x2, y2 on the CPU, (N, 4).
        scores (Tensor): (N, ).
        dets (Tensor): The first rows are filled in place with corners and the new
            score of the kept boxes, best first, (N, 5).
        iou_threshold (float): For the methods 0 and 1.
        sigma (float): For the method 2.
        min_score (float): Boxes whose score falls below are dropped.
        method (int): Factor of an overlapping box: 0 zero, 1 one minus IoU (both from
            the threshold on), 2 ``exp(-IoU ** 2 / sigma)``.
        offset (int): 0 or 1; a box is ``x2 - x1 + offset`` wide.

    Returns:
        Tensor: Indices of the kept boxes, int64.
    """
    corners, left = at_least_float32(boxes), at_least_float32(scores).clone()
    index = torch.arange(len(corners), device=corners.device)
    keep: list[int] = []
    while len(index):
        best = int(left.argmax())
        dets[len(keep)] = torch.cat([corners[best], left[best, None]])
        keep.append(int(index[best]))
        iou = _overlaps(corners[best], corners, offset)
        if method == 2:
            left *= torch.exp(-iou.square() / sigma)
        else:
            factor = 1 - iou if method == 1 else torch.zeros_like(iou)
            left *= torch.where(iou >= iou_threshold, factor, 1)
        stays = left >= min_score
        stays[best] = False
        corners, left, index = corners[stays], left[stays], index[stays]
    return torch.tensor(keep, dtype=torch.long, device=boxes.device)


def _overlaps(box: Tensor, boxes: Tensor, offset: int) -> Tensor:
    """IoU of one box, (4, ), with others, (N, 4)."""
    size = boxes[:, 2:] - boxes[:, :2] + offset
    inner = torch.minimum(box[2:], boxes[:, 2:]) - torch.maximum(box[:2], boxes[:, :2])
    inner = (inner + offset).clamp(min=0).prod(1)
    return inner / ((box[2:] - box[:2] + offset).prod() + size.prod(1) - inner)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Greedy NMS that tells which boxes were removed, as ``mmcv._ext.nms_match``.

    Args:
        dets (Tensor): Corners and score on the CPU, (N, 5).
        iou_threshold (float): Boxes whose IoU with a better box is not smaller join
            the group of that box.

    Returns:
        list[list[int]]: Groups of indices, best score first, also within a group.
    """
    boxes = at_least_float32(dets[:, :4])
    order = dets[:, 4].sort(0, descending=True)[1]
    groups = []
    while len(order):
        joins = _overlaps(boxes[order[0]], boxes[order], 0) >= iou_threshold
        joins[0] = True  # also a box without area
        groups.append(order[joins].tolist())
        order = order[~joins]
    return groups
