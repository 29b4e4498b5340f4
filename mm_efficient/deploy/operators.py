"""Suppression and RoIAlign as single operators of fixed output shape.

What is inside depends on values in the images: how many boxes stay, which regions are
of which level. As operators they do not show that to a tracer. ONNX has operators for
both, TorchScript scripts the functions, and `torch.export` keeps them by name
(``mm_efficient::``), so that its programs need ``import mm_efficient.deploy``.
"""
from collections.abc import Sequence

import torch
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor


def _suppress(boxes: Tensor, scores: Tensor, iou_threshold: float,
              max_output: int) -> Tensor:
    kept = torch.full([boxes.shape[0], max_output], -1, dtype=torch.int64,
                      device=boxes.device)
    for i in range(boxes.shape[0]):
        valid = (scores[i] > 0).nonzero().squeeze(1)
        order = torch.ops.torchvision.nms(boxes[i][valid], scores[i][valid],
                                          iou_threshold)
        order = valid[order[:max_output]]
        kept[i, :order.shape[0]] = order
    return kept


def _pyramid_roi_align(maps: list[Tensor], rois: Tensor, levels: Tensor,
                       scales: list[float], size: int, sampling_ratio: int) -> Tensor:
    out = torch.zeros([rois.shape[0], maps[0].shape[1], size, size],
                      dtype=maps[0].dtype, device=rois.device)
    for i in range(len(maps)):
        index = (levels == i).nonzero().squeeze(1)
        out[index] = torch.ops.torchvision.roi_align(
            maps[i], rois[index], scales[i], size, size, sampling_ratio, True)
    return out


_suppress_op, _pyramid_roi_align_op = _suppress, _pyramid_roi_align
if hasattr(torch.library, 'custom_op'):  # torch 2.4; exporting needs later ones
    _suppress_op = torch.library.custom_op(
        'mm_efficient::suppress', _suppress, mutates_args=())
    _pyramid_roi_align_op = torch.library.custom_op(
        'mm_efficient::pyramid_roi_align', _pyramid_roi_align, mutates_args=())

    @_suppress_op.register_fake
    def _(boxes, scores, iou_threshold, max_output):
        return boxes.new_empty((boxes.shape[0], max_output), dtype=torch.int64)

    @_pyramid_roi_align_op.register_fake
    def _(maps, rois, levels, scales, size, sampling_ratio):
        return maps[0].new_empty((rois.shape[0], maps[0].shape[1], size, size))


def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float,
             max_output: int) -> Tensor:
    """Greedy non-maximum suppression, of every image on its own.

    Args:
        boxes (Tensor): Corners x1, y1, x2, y2, (B, N, 4).
        scores (Tensor): (B, N); boxes with a score of 0 are none.
        iou_threshold (float): A box that overlaps a kept, better one by more is
            dropped.
        max_output (int): Number of boxes that are kept at most.

    Returns:
        Tensor: Their indices, best first, int64, (B, max_output); -1 where there is
        none.
    """
    # As MMCV, which compares with the threshold in single precision
    iou_threshold = torch.tensor(iou_threshold, dtype=torch.float32).item()
    if torch.jit.is_tracing():
        return torch.jit.script(_suppress)(boxes, scores, iou_threshold, max_output)
    return _suppress_op(boxes, scores, iou_threshold, max_output)


def pyramid_roi_align(maps: Sequence[Tensor], rois: Tensor, levels: Tensor,
                      scales: Sequence[float], size: int,
                      sampling_ratio: int) -> Tensor:
    """RoIAlign of every region on the level of the pyramid it belongs to.

    Args:
        maps (Sequence[Tensor]): Levels, each (B, C, h, w).
        rois (Tensor): Image index, x1, y1, x2, y2, (K, 5).
        levels (Tensor): Level of every region, int64, (K, ).
        scales (Sequence[float]): Pixels of a level per pixel of the image.
        size (int): Bins per side.
        sampling_ratio (int): Samples per bin and side; 0 adapts to the region.

    Returns:
        Tensor: (K, C, size, size).
    """
    if torch.jit.is_tracing():
        return torch.jit.script(_pyramid_roi_align)(
            list(maps), rois, levels, list(scales), size, sampling_ratio)
    return _pyramid_roi_align_op(list(maps), rois, levels, list(scales), size,
                                 sampling_ratio)


# ------------------------------------------------------------------------- ONNX


def onnx_translations() -> dict:
    """The operators in those of ONNX, for ``torch.onnx.export``.

    Returns:
        dict: ``custom_translation_table``.
    """
    from onnxscript import INT64
    from onnxscript import opset18 as op

    def ints(*values):
        return op.Constant(value_ints=list(values))

    def suppress(boxes, scores, iou_threshold, max_output):
        # Rows of image, class and box, image after image, best first
        rows = op.NonMaxSuppression(
            boxes, op.Unsqueeze(scores, ints(1)), ints(max_output),
            op.Constant(value_float=iou_threshold), op.Constant(value_float=0.))
        image = op.Slice(rows, ints(0), ints(1), ints(1))  # (M, 1)
        index = op.Squeeze(op.Slice(rows, ints(2), ints(3), ints(1)), ints(1))
        batch = op.Shape(boxes, start=0, end=1)
        images = op.Range(op.Constant(value_int=0), op.Squeeze(batch),
                          op.Constant(value_int=1))
        # The place of a row among those of its image
        own = op.Cast(op.Equal(image, op.Unsqueeze(images, ints(0))), to=INT64.dtype)
        count = op.CumSum(own, op.Constant(value_int=0))  # (M, B)
        place = op.Sub(op.GatherElements(count, image, axis=1), ints(1))  # (M, 1)
        none = op.Expand(op.Constant(value_int=-1),
                         op.Concat(batch, ints(max_output), axis=0))
        return op.ScatterND(none, op.Concat(image, place, axis=1), index)

    def pyramid_roi_align(maps, rois, levels, scales, size, sampling_ratio):
        corners = op.Slice(rois, ints(1), ints(5), ints(1))
        images = op.Cast(op.Squeeze(op.Slice(rois, ints(0), ints(1), ints(1)), ints(1)),
                         to=INT64.dtype)
        indices, parts = [], []
        for i, (level, scale) in enumerate(zip(maps, scales)):
            index = op.Squeeze(op.NonZero(op.Equal(levels, op.Constant(value_int=i))),
                               ints(0))
            indices.append(index)
            parts.append(op.RoiAlign(
                level, op.Gather(corners, index), op.Gather(images, index),
                coordinate_transformation_mode='half_pixel', mode='avg',
                output_height=size, output_width=size, sampling_ratio=sampling_ratio,
                spatial_scale=scale))
        regions = op.Concat(*parts, axis=0)
        index = op.Unsqueeze(op.Concat(*indices, axis=0), ints(1))
        return op.ScatterND(op.ConstantOfShape(op.Shape(regions)), index, regions)

    ops = torch.ops.mm_efficient
    return {ops.suppress.default: suppress,
            ops.pyramid_roi_align.default: pyramid_roi_align}
