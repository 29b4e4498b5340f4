"""IoU and non-maximum suppression of rotated boxes, x, y, w, h and angle in radians.

Two boxes intersect in a convex polygon. Its corners are among the crossings of their
edges and the corners of one box inside the other, 24 points at most.
"""
import torch
from torch import Tensor

PAIRS_AT_ONCE = 2**15  # limits the memory, 2 kB per pair
TOLERANCE = 1e-9  # of the boxes' size, so that common corners and edges count


def box_iou_rotated(boxes1: Tensor, boxes2: Tensor, ious: Tensor, mode_flag: int,
                    aligned: bool) -> None:
    """Overlaps of rotated boxes, as ``mmcv._ext.box_iou_rotated``.

    Args:
        boxes1 (Tensor): (N, 5).
        boxes2 (Tensor): (M, 5).
        ious (Tensor): Filled in place: of each pair, (N * M, ); if ``aligned``, of
            those in the same place, (N, ).
        mode_flag (int): What the intersection is divided by: 0 the union, 1 the area
            of the first box.
        aligned (bool): See ``ious``.
    """
    if aligned:
        first = second = torch.arange(len(boxes1), device=boxes1.device)
        place = first
    else:
        first, second = _close_pairs(boxes1, boxes2)
        place = first * len(boxes2) + second
    ious.zero_()
    for chosen in torch.arange(len(place), device=place.device).split(PAIRS_AT_ONCE):
        ious[place[chosen]] = _overlaps(
            boxes1[first[chosen]].double(), boxes2[second[chosen]].double(),
            mode_flag).to(ious.dtype)


def _close_pairs(boxes1: Tensor, boxes2: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the pairs whose circumscribed circles overlap."""
    radius1, radius2 = (boxes[:, 2:4].float().norm(dim=1) / 2
                        for boxes in (boxes1, boxes2))
    distance = (boxes1[:, None, :2].float() - boxes2[None, :, :2].float()).norm(dim=2)
    first, second = (distance <= radius1[:, None] + radius2).nonzero(as_tuple=True)
    return first, second


def _overlaps(boxes1: Tensor, boxes2: Tensor, mode_flag: int) -> Tensor:
    """Overlaps of boxes in the same place, both (N, 5), float64."""
    area1, area2 = boxes1[:, 2] * boxes1[:, 3], boxes2[:, 2] * boxes2[:, 3]
    inner = _intersections(boxes1, boxes2)
    base = area1 if mode_flag else area1 + area2 - inner
    overlap = inner / base
    return torch.where((area1 > 1e-14) & (area2 > 1e-14), overlap, 0)  # as mmcv


def _intersections(boxes1: Tensor, boxes2: Tensor) -> Tensor:
    """Areas of the intersections of boxes in the same place, both (N, 5)."""
    origin = boxes1[:, :2]
    corners1, corners2 = (_corners(boxes) - origin[:, None]
                          for boxes in (boxes1, boxes2))
    inside1 = _inside(corners1 + origin[:, None], boxes2)
    inside2 = _inside(corners2 + origin[:, None], boxes1)
    start1, start2 = corners1[:, :, None], corners2[:, None]
    edge1 = corners1.roll(-1, 1)[:, :, None] - start1
    edge2 = corners2.roll(-1, 1)[:, None] - start2
    sine = _cross(edge1, edge2)  # (N, 4, 4), 0 for parallel edges
    share1 = _cross(start2 - start1, edge2) / sine
    share2 = _cross(start2 - start1, edge1) / sine
    crossing = (share1 >= 0) & (share1 <= 1) & (share2 >= 0) & (share2 <= 1)
    points = (start1 + share1[..., None] * edge1).flatten(1, 2)
    points = torch.cat([corners1, corners2, points], 1)  # (N, 24, 2)
    valid = torch.cat([inside1, inside2, crossing.flatten(1)], 1)
    points = torch.where(valid[..., None], points, 0)
    centre = points.sum(1) / valid.sum(1).clamp(min=1)[:, None]
    points = points - centre[:, None]
    order = _angles(points, valid).argsort(1)
    points = points.gather(1, order[..., None].expand_as(points))
    # After the last corner the first again, which adds no area
    left = valid.gather(1, order)[..., None]
    points = torch.where(left, points, points[:, :1])
    return _cross(points, points.roll(-1, 1)).sum(1).abs() / 2


def _corners(boxes: Tensor) -> Tensor:
    """Corners of boxes, (N, 5), in turn, (N, 4, 2)."""
    signs = boxes.new_tensor([[-1, -1], [1, -1], [1, 1], [-1, 1]]) / 2
    return boxes[:, None, :2] + _turn(boxes[:, None, 2:4] * signs, boxes[:, 4])


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """Whether points, (N, K, 2), are in the box, (N, 5), with its border, (N, K)."""
    size = boxes[:, None, 2:4]
    local = _turn(points - boxes[:, None, :2], -boxes[:, 4]).abs()
    return (local <= size / 2 + TOLERANCE * size.amax(2, keepdim=True)).all(2)


def _turn(points: Tensor, angle: Tensor) -> Tensor:
    """Rotate points, (N, K, 2), about the origin by angles, (N, )."""
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    x, y = points.unbind(2)
    return torch.stack([x * cos - y * sin, x * sin + y * cos], 2)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _angles(points: Tensor, valid: Tensor) -> Tensor:
    """Directions of points, (..., 2), with infinity for those that do not count."""
    return torch.atan2(points[..., 1], points[..., 0]).masked_fill(
        ~valid, torch.inf)


def nms_rotated(dets: Tensor, scores: Tensor, order: Tensor, dets_sorted: Tensor,
                labels: Tensor, iou_threshold: float, multi_label: bool) -> Tensor:
    """Greedy NMS of rotated boxes, as ``mmcv._ext.nms_rotated`` on a GPU.

    Args:
        dets (Tensor): Boxes, (N, 5), with the label as a sixth column if
            ``multi_label``.
        scores (Tensor): (N, ).
        order (Tensor): Indices of the boxes, best score first, (N, ).
        dets_sorted (Tensor): ``dets`` in that order.
        labels (Tensor): Not used; ``dets`` has them.
        iou_threshold (float): Boxes whose IoU with a better box of the same label is
            larger are removed.
        multi_label (bool): See ``dets``.

    Returns:
        Tensor: Indices of the kept boxes, int64, best score first.
    """
    boxes = dets_sorted[:, :5]
    ious = boxes.new_zeros(len(boxes)**2)
    box_iou_rotated(boxes, boxes, ious, 0, False)
    removes = ious.view(len(boxes), -1) > iou_threshold
    if multi_label:
        removes &= dets_sorted[:, 5:6] == dets_sorted[:, 5]
    removes = removes.cpu()  # instead of waiting for the device for each box
    removed = torch.zeros(len(boxes), dtype=torch.bool, device='cpu')
    keep = []
    for i, row in enumerate(removes):
        if not removed[i]:
            keep.append(i)
            removed |= row
    return order[torch.tensor(keep, dtype=torch.long, device=order.device)]


def diff_iou_rotated_sort_vertices_forward(vertices: Tensor, mask: Tensor,
                                           num_valid: Tensor) -> Tensor:
    """Corners in turn, as ``mmcv._ext.diff_iou_rotated_sort_vertices_forward``.

    Args:
        vertices (Tensor): Candidates about their mean, (B, N, 24, 2); those from the
            ninth on that do not count are the same point.
        mask (Tensor): Whether they count, (B, N, 24).
        num_valid (Tensor): How many count, (B, N).

    Returns:
        Tensor: Indices of at most 8 corners, then of the first again, then of points
        that do not count, int32, (B, N, 9).
    """
    order = _angles(vertices, mask).argsort(-1)[..., :9]
    place = torch.arange(9, device=order.device)
    number = num_valid[..., None].clamp(max=8)
    unused = 8 + mask[..., 8:].to(torch.uint8).argmin(-1, keepdim=True)
    order = torch.where(place == number, order[..., :1], order)
    return torch.where((place > number) | (number < 3), unused, order).int()
