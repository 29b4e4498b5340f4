"""NMS and RoIAlign as single operators with fixed output shapes; others for ONNX.

Inside, shapes depend on values: how many boxes NMS keeps, which RoIs belong to which
feature map. As single operators they hide that from tracers. ONNX has operators for
both, TorchScript scripts the functions, and `torch.export` keeps them by name
(``mm_efficient::``), so loading its files needs ``import mm_efficient.deploy``.
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  registers torch.ops.torchvision
from torch import Tensor
from torch.overrides import TorchFunctionMode

ONNX_INT64 = 7  # onnx.TensorProto.INT64; ONNX need not be installed


def _padded_nms(boxes: Tensor, scores: Tensor, iou_threshold: float,
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


def _resize_bilinear(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, (height, width), mode='bilinear', align_corners=False)


def _layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, weight.shape, weight, bias, eps)


_padded_nms_op: Any = _padded_nms
_pyramid_roi_align_op: Any = _pyramid_roi_align
if hasattr(torch.library, 'custom_op'):  # from torch 2.4 on; exporting needs 2.6
    _padded_nms_op = torch.library.custom_op(
        'mm_efficient::padded_nms', _padded_nms, mutates_args=())
    _pyramid_roi_align_op = torch.library.custom_op(
        'mm_efficient::pyramid_roi_align', _pyramid_roi_align, mutates_args=())

    _resize_bilinear_op = torch.library.custom_op(
        'mm_efficient::resize_bilinear', _resize_bilinear, mutates_args=())
    _layer_norm_op = torch.library.custom_op(
        'mm_efficient::layer_norm', _layer_norm, mutates_args=())

    @_padded_nms_op.register_fake
    def _(boxes: Tensor, scores: Tensor, iou_threshold: float,
          max_output: int) -> Tensor:
        return boxes.new_empty((boxes.shape[0], max_output), dtype=torch.int64)

    @_pyramid_roi_align_op.register_fake
    def _(maps: list[Tensor], rois: Tensor, levels: Tensor, scales: list[float],
          size: int, sampling_ratio: int) -> Tensor:
        return maps[0].new_empty((rois.shape[0], maps[0].shape[1], size, size))

    @_resize_bilinear_op.register_fake
    def _(x: Tensor, height: int, width: int) -> Tensor:
        return x.new_empty((*x.shape[:2], height, width))

    @_layer_norm_op.register_fake
    def _(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        return x.new_empty(x.shape)


class SingleOperators(TorchFunctionMode):
    """For ONNX: bilinear resizing and layer norms of dynamic sizes as single operators.

    PyTorch's own compute the shape of their output by tracing their formula, and an
    export does so four times.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        """See ``TorchFunctionMode``."""
        found = kwargs or {}
        ops = torch.ops.mm_efficient
        if func is F.interpolate and _is_dynamic(found['size']) and (
                found['mode'] == 'bilinear'
                and not found['align_corners'] and not found['antialias']):
            return ops.resize_bilinear(*args, *found['size'])
        if func is F.layer_norm and _is_dynamic(args[0].shape) and (
                len(args[1]) == 1
                and found['weight'] is not None and found['bias'] is not None):
            return ops.layer_norm(args[0], found['weight'], found['bias'], found['eps'])
        return func(*args, **found)


def _is_dynamic(size: Any) -> bool:
    return isinstance(size, (tuple, list)) and any(
        isinstance(each, torch.SymInt) for each in size)


def padded_nms(boxes: Tensor, scores: Tensor, iou_threshold: float,
               max_output: int) -> Tensor:
    """Greedy NMS of each image, with a fixed number of output rows.

    Args:
        boxes (Tensor): x1, y1, x2, y2, (B, N, 4).
        scores (Tensor): (B, N), 0 where there is no box.
        iou_threshold (float): Drop boxes whose IoU with a better one is greater.
        max_output (int): Number of output rows.

    Returns:
        Tensor: Indices of the remaining boxes, best first, int64, (B, max_output);
        -1 in unused rows.
    """
    # MMCV compares with the threshold in float32
    iou_threshold = torch.tensor(
        iou_threshold, dtype=torch.float32, device='cpu').item()
    if torch.jit.is_tracing():
        return torch.jit.script(_padded_nms)(boxes, scores, iou_threshold, max_output)
    return _padded_nms_op(boxes, scores, iou_threshold, max_output)


def pyramid_roi_align(maps: Sequence[Tensor], rois: Tensor, levels: Tensor,
                      scales: Sequence[float], size: int,
                      sampling_ratio: int) -> Tensor:
    """RoIAlign, each RoI on the feature map assigned to it.

    Args:
        maps (Sequence[Tensor]): Feature maps, each (B, C, h, w).
        rois (Tensor): Image index, x1, y1, x2, y2, (K, 5).
        levels (Tensor): Index of the feature map of each RoI, int64, (K, ).
        scales (Sequence[float]): Scale of each feature map relative to the image.
        size (int): Output height and width.
        sampling_ratio (int): Samples per bin and side; 0 adapts to the RoI.

    Returns:
        Tensor: (K, C, size, size).
    """
    if torch.jit.is_tracing():
        return torch.jit.script(_pyramid_roi_align)(
            list(maps), rois, levels, list(scales), size, sampling_ratio)
    return _pyramid_roi_align_op(list(maps), rois, levels, list(scales), size,
                                 sampling_ratio)


def onnx_translations() -> dict[Any, Any]:
    """Translations of these operators for ``torch.onnx.export``.

    Returns:
        dict: Its ``custom_translation_table``.
    """
    ops = torch.ops.mm_efficient
    return {ops.padded_nms.default: _onnx_padded_nms,
            ops.pyramid_roi_align.default: _onnx_pyramid_roi_align,
            ops.resize_bilinear.default: _onnx_resize_bilinear,
            ops.layer_norm.default: _onnx_layer_norm}


def _onnx_opset() -> Any:
    from onnxscript import opset18
    return opset18


def _onnx_ints(*values: int) -> Any:
    return _onnx_opset().Constant(value_ints=list(values))


def _onnx_padded_nms(boxes: Any, scores: Any, iou_threshold: float, max_output: int
                     ) -> Any:
    op, ints = _onnx_opset(), _onnx_ints
    # Rows of image, class and box: image after image, best first
    rows = op.NonMaxSuppression(
        boxes, op.Unsqueeze(scores, ints(1)), ints(max_output),
        op.Constant(value_float=iou_threshold), op.Constant(value_float=0.))
    image = op.Slice(rows, ints(0), ints(1), ints(1))  # (M, 1)
    index = op.Squeeze(op.Slice(rows, ints(2), ints(3), ints(1)), ints(1))
    batch_size = op.Shape(boxes, start=0, end=1)
    images = op.Range(op.Constant(value_int=0), op.Squeeze(batch_size),
                      op.Constant(value_int=1))
    # Rank of each row among those of its image
    own = op.Cast(op.Equal(image, op.Unsqueeze(images, ints(0))), to=ONNX_INT64)
    count = op.CumSum(own, op.Constant(value_int=0))  # (M, B)
    rank = op.Sub(op.GatherElements(count, image, axis=1), ints(1))  # (M, 1)
    empty = op.Expand(op.Constant(value_int=-1),
                      op.Concat(batch_size, ints(max_output), axis=0))
    return op.ScatterND(empty, op.Concat(image, rank, axis=1), index)


def _onnx_pyramid_roi_align(maps: Any, rois: Any, levels: Any, scales: Sequence[float],
                            size: int, sampling_ratio: int) -> Any:
    op, ints = _onnx_opset(), _onnx_ints
    corners = op.Slice(rois, ints(1), ints(5), ints(1))
    images = op.Cast(op.Squeeze(op.Slice(rois, ints(0), ints(1), ints(1)), ints(1)),
                     to=ONNX_INT64)
    indices, parts = [], []
    for i, (feature_map, scale) in enumerate(zip(maps, scales)):
        index = op.Squeeze(op.NonZero(op.Equal(levels, op.Constant(value_int=i))),
                           ints(0))
        indices.append(index)
        parts.append(op.RoiAlign(
            feature_map, op.Gather(corners, index), op.Gather(images, index),
            coordinate_transformation_mode='half_pixel', mode='avg',
            output_height=size, output_width=size, sampling_ratio=sampling_ratio,
            spatial_scale=scale))
    features = op.Concat(*parts, axis=0)
    index = op.Unsqueeze(op.Concat(*indices, axis=0), ints(1))
    return op.ScatterND(op.ConstantOfShape(op.Shape(features)), index, features)


def _onnx_resize_bilinear(x: Any, height: Any, width: Any) -> Any:
    op = _onnx_opset()
    sizes = [op.Constant(value_ints=[size]) if isinstance(size, int) else
             op.Reshape(size, _onnx_ints(1)) for size in (height, width)]
    return op.Resize(x, None, None, op.Concat(op.Shape(x, start=0, end=2), *sizes,
                                              axis=0),
                     mode='linear', coordinate_transformation_mode='half_pixel')


def _onnx_layer_norm(x: Any, weight: Any, bias: Any, eps: float) -> Any:
    y, *_ = _onnx_opset().LayerNormalization(x, weight, bias, axis=-1, epsilon=eps)
    return y
