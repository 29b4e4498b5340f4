"""Compare outputs, and exported models with the model in PyTorch.

The reference of an export is what the model's ``test_step`` returns before any layer is
fused or replaced.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .detectors import paste_masks

# Largest RMS error of feature maps and probabilities, and largest difference between
# scores of detections
TOLERANCE = 1e-3
# Smallest share of detections or pixels that must match, and smallest mask IoU:
# rounding can change which class is best, or whether an IoU exceeds the NMS threshold
MIN_SHARE = 0.98
BOX_TOLERANCE = 0.5  # pixels


@dataclass
class ParityResult:
    """How well an exported model reproduces PyTorch's outputs for a batch.

    Args:
        shape (tuple[int, ...]): Shape of the batch of images.
        metrics (dict[str, float]): Errors by name, and the number of boxes or classes
            compared.
        passed (bool): Whether all errors are within tolerance.
    """
    shape: tuple[int, ...]
    metrics: dict[str, float]
    passed: bool

    def __str__(self) -> str:
        metrics = ', '.join(f'{name} {value:.3g}' for name, value in
                            self.metrics.items())
        return f'{" x ".join(map(str, self.shape))}: {metrics}'


def tensors_of(value: Any) -> list[Tensor]:
    """Flatten nested lists, tuples and dicts into a list of tensors.

    Args:
        value (Any): For example the output of a model.

    Returns:
        list[Tensor]: All tensors in order; anything else is left out.
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors_of(item)]


def relative_error(y: Tensor, reference: Tensor) -> float:
    """Largest absolute difference over the largest magnitude of the reference.

    Args:
        y (Tensor): Any tensor.
        reference (Tensor): Floating point.

    Returns:
        float: At least 0; infinite if the shapes differ, NaN if a value is not finite.
    """
    if y.shape != reference.shape:
        return float('inf')
    if not reference.numel():
        return 0.
    largest = reference.abs().max().clamp(min=torch.finfo(reference.dtype).tiny)
    return ((y.to(reference) - reference).abs().max() / largest).item()


def _rms_error(y: Tensor, reference: Tensor) -> float:
    """RMS of the difference over the RMS of the reference.

    Exports are not judged by :func:`relative_error`: rounding can flip a bit of
    EcoFormer's hash codes, which changes single values by up to 1 % of the largest one
    (measured), but the RMS by less than 0.1 %.
    """
    if y.shape != reference.shape:
        return float('inf')
    if torch.equal(y, reference):  # also where both are zero
        return 0.
    return ((y - reference).double().norm() / reference.double().norm()).item()


@torch.no_grad()
def predict(model: Any, images: Tensor) -> list[Any]:
    """Predict with a model of OpenMMLab.

    Args:
        model (nn.Module): Classifier, detector or segmentor, in eval mode.
        images (Tensor): RGB, 0 to 255, (B, 3, H, W).

    Returns:
        list[BaseDataElement]: One data sample per image.
    """
    data: dict[str, list] = dict(inputs=[image.flip(0) for image in images])  # BGR
    if sample_class := _sample_class(model):
        shape = tuple(images.shape[2:])
        meta = dict(ori_shape=shape, img_shape=shape, scale_factor=(1., 1.))
        data['data_samples'] = [sample_class(metainfo=meta) for _ in images]
    return model.test_step(data)


def _sample_class(model: nn.Module) -> Any:
    """Class of the data samples that a model needs as input, or None."""
    if hasattr(model, 'bbox_head') or hasattr(model, 'roi_head'):
        from mmdet.structures import DetDataSample
        return DetDataSample
    if hasattr(model, 'decode_head'):
        from mmseg.structures import SegDataSample
        return SegDataSample
    return None


def measure_parity(run: Callable[[Tensor], Sequence[Tensor]], images: Tensor,
                   expected: Sequence[Any], mask_threshold: float = 0.5
                   ) -> ParityResult:
    """Compare the outputs of an exported model with PyTorch's.

    Args:
        run (Callable): The exported model.
        images (Tensor): Batch of images, (B, C, H, W).
        expected (Sequence): Feature maps of a backbone, or data samples from
            :func:`predict`.
        mask_threshold (float): Smallest probability of the pixels in an instance mask.
            Defaults to 0.5.

    Returns:
        ParityResult: The errors found.
    """
    outputs = run(images)
    if isinstance(expected[0], Tensor):
        metrics = {f'feature map {i}': _rms_error(y, z)
                   for i, (y, z) in enumerate(zip(outputs, expected, strict=True))}
        passed = all(error <= TOLERANCE for error in metrics.values())
    elif 'pred_score' in expected[0]:
        error = _rms_error(outputs[0], torch.stack([
            sample.pred_score for sample in expected]))
        metrics, passed = dict(scores=error), error <= TOLERANCE
    elif 'pred_sem_seg' in expected[0]:
        labels = torch.stack([sample.pred_sem_seg.data for sample in expected])
        equal = (outputs[0] == labels).double().mean().item()
        metrics = {'equal pixels': equal, 'classes': len(labels.unique())}
        passed = equal >= MIN_SHARE
    else:
        metrics = _detection_metrics(outputs, images, expected, mask_threshold)
        passed = min(metrics['matched'], metrics.get('mask IoU', 1.)) >= MIN_SHARE
    return ParityResult(tuple(images.shape), metrics, passed)


def _detection_metrics(outputs: Sequence[Tensor], images: Tensor,
                       expected: Sequence[Any], mask_threshold: float
                       ) -> dict[str, float]:
    num_boxes = num_matched = 0
    box_error = score_error = 0.
    mask_ious = []
    for i, sample in enumerate(expected):
        valid = outputs[1][i] >= 0
        dets, labels = outputs[0][i][valid], outputs[1][i][valid]
        truth = sample.pred_instances
        pairs = _match(dets, labels, truth)
        num_boxes += max(len(truth), len(dets))
        num_matched += len(pairs)
        if not pairs:
            continue
        a, b = (list(side) for side in zip(*pairs))
        box_difference = (dets[a, :4] - truth.bboxes[b]).abs().max().item()
        score_difference = (dets[a, 4] - truth.scores[b]).abs().max().item()
        box_error = max(box_error, box_difference)
        score_error = max(score_error, score_difference)
        if 'masks' in truth:
            masks = paste_masks(outputs[2][i][a], dets[a, :4], images.shape[2:],
                                mask_threshold)
            mask_ious.append(_mean_iou(masks, truth.masks[b]))
    matched = num_matched / num_boxes if num_boxes else 1.
    metrics = dict(boxes=num_boxes, matched=matched, pixels=box_error,
                   scores=score_error)
    if mask_ious:
        metrics['mask IoU'] = sum(mask_ious) / len(mask_ious)
    return metrics


def _match(dets: Tensor, labels: Tensor, truth: Any) -> list[tuple[int, int]]:
    """Index pairs of equal detections; each index occurs once at most."""
    if not len(dets) or not len(truth):
        return []
    distance = (dets[:, None, :4] - truth.bboxes[None]).abs().amax(-1)  # (n, m), pixels
    equal = (distance <= BOX_TOLERANCE) & (labels[:, None] == truth.labels[None]) & (
        (dets[:, None, 4] - truth.scores[None]).abs() <= TOLERANCE)
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    for a, row in enumerate(distance.masked_fill(~equal, float('inf'))):
        candidates = [b for b in row.argsort().tolist()
                      if b not in taken and row[b].isfinite()]
        if candidates:
            pairs.append((a, candidates[0]))
            taken.add(candidates[0])
    return pairs


def _mean_iou(masks: Tensor, others: Tensor) -> float:
    """Mean IoU of pairs of masks, (K, H, W); that of two empty masks is 1."""
    union = (masks | others).flatten(1).sum(1)
    intersection = (masks & others).flatten(1).sum(1)
    return torch.where(union > 0, intersection / union.clamp(min=1), 1.).mean().item()
