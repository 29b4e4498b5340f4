"""Whether an exported model predicts what the model in PyTorch does.

Compared is with the model's own prediction, by OpenMMLab's test_step, before anything
was folded or rewritten.
"""
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from .detectors import paste_masks

# Largest difference of maps and probabilities, relative to the largest magnitude, and
# of scores of detections
TOLERANCE = 1e-3
# A hash code flips where a projection is zero up to rounding, and decisions as to the
# largest score or an overlap do: the least share that has to agree
LEAST_SHARE = 0.98
BOX_TOLERANCE = 0.5  # pixels


@dataclass
class Agreement:
    """How well outputs for a batch of images agree.

    Args:
        shape (tuple[int, ...]): Of the images.
        figures (dict[str, float]): What was compared, by name.
        agrees (bool): Whether the figures are within the tolerances.
    """
    shape: tuple[int, ...]
    figures: dict[str, float]
    agrees: bool

    def __str__(self) -> str:
        shape = ' x '.join(map(str, self.shape))
        return f'{shape}: ' + ', '.join(
            f'{name} {value:.3g}' for name, value in self.figures.items())


@torch.no_grad()
def predict(model: nn.Module, images: Tensor) -> list[BaseDataElement]:
    """What a model of OpenMMLab predicts.

    Args:
        model (nn.Module): Classifier, detector or segmentor, in eval mode.
        images (Tensor): RGB of 0 to 255, (B, 3, H, W).

    Returns:
        list[BaseDataElement]: A sample for every image.
    """
    size = tuple(images.shape[2:])
    samples = None
    if hasattr(model, 'bbox_head') or hasattr(model, 'roi_head'):
        from mmdet.structures import DetDataSample as DataSample
        samples = []
    elif hasattr(model, 'decode_head'):
        from mmseg.structures import SegDataSample as DataSample
        samples = []
    if samples is not None:
        meta = dict(ori_shape=size, img_shape=size, scale_factor=(1., 1.))
        samples = [DataSample(metainfo=meta) for _ in images]
    data = dict(inputs=[image.flip(0) for image in images])  # pipelines give BGR
    if samples is not None:
        data['data_samples'] = samples
    return model.test_step(data)


def compare(run: Callable[[Tensor], Sequence[Tensor]], images: Tensor,
            expected: Sequence, mask_threshold: float = 0.5) -> Agreement:
    """Compare the outputs of an exported model.

    Args:
        run (Callable): The exported model.
        images (Tensor): A batch.
        expected (Sequence): Maps of a backbone, or samples from :func:`predict`.
        mask_threshold (float): Probability from which a pixel counts to the mask of a
            detection. Defaults to 0.5.

    Returns:
        Agreement: What was found. Beside deviations it tells how much there was to
        compare: boxes, or classes that occur.
    """
    outputs = run(images)
    first = expected[0]
    if isinstance(first, Tensor):
        figures = {f'map {i}': _deviation(a, b)
                   for i, (a, b) in enumerate(zip(outputs, expected))}
    elif 'pred_score' in first:
        scores = torch.stack([sample.pred_score for sample in expected])
        figures = {'scores': _deviation(outputs[0], scores)}
    elif 'pred_sem_seg' in first:
        labels = torch.stack([sample.pred_sem_seg.data for sample in expected])
        same = (outputs[0] == labels).double().mean().item()
        return Agreement(
            tuple(images.shape),
            {'pixels of the same class': same, 'classes': len(labels.unique())},
            same >= LEAST_SHARE)
    else:
        return _compare_detections(outputs, images, expected, mask_threshold)
    return Agreement(tuple(images.shape), figures,
                     all(value <= TOLERANCE for value in figures.values()))


def _deviation(output: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference, relative to that of what is expected."""
    if output.shape != expected.shape:
        return float('inf')
    return ((output - expected).double().norm() / expected.double().norm()).item()


def _compare_detections(outputs: Sequence[Tensor], images: Tensor,
                        expected: Sequence[BaseDataElement],
                        mask_threshold: float) -> Agreement:
    number = matched = 0
    corners = scores = 0.
    overlaps = []
    for i, sample in enumerate(expected):
        found, labels = outputs[0][i], outputs[1][i]
        found, labels = found[labels >= 0], labels[labels >= 0]
        truth = sample.pred_instances
        number += max(len(truth), len(found))
        pairs = _pairs(found, labels, truth)
        for a, b in pairs:
            corners = max(corners, (found[a, :4] - truth.bboxes[b]).abs().max().item())
            scores = max(scores, (found[a, 4] - truth.scores[b]).abs().item())
        matched += len(pairs)
        if pairs and 'masks' in truth:
            a, b = (list(side) for side in zip(*pairs))
            masks = paste_masks(outputs[2][i][a], found[a, :4], images.shape[2:],
                                mask_threshold)
            overlaps.append(_mean_overlap(masks, truth.masks[b]))
    figures = dict(boxes=number, matched=matched / number if number else 1.,
                   pixels=corners, scores=scores)
    if overlaps:
        figures['overlap of masks'] = sum(overlaps) / len(overlaps)
    agrees = min(figures['matched'], figures.get('overlap of masks', 1.)) >= LEAST_SHARE
    return Agreement(tuple(images.shape), figures, agrees)


def _pairs(found: Tensor, labels: Tensor, truth: BaseDataElement
           ) -> list[tuple[int, int]]:
    """Detections that are the same, each in one pair at most."""
    if not len(found) or not len(truth):
        return []
    far = (found[:, None, :4] - truth.bboxes[None]).abs().amax(-1)  # (n, m), pixels
    same = (far <= BOX_TOLERANCE) & (labels[:, None] == truth.labels[None]) & (
        (found[:, None, 4] - truth.scores[None]).abs() <= TOLERANCE)
    pairs, taken = [], set()
    for a, row in enumerate(far.masked_fill(~same, float('inf'))):
        for b in row.argsort().tolist():
            if row[b].isinf():
                break
            if b not in taken:
                pairs.append((a, b))
                taken.add(b)
                break
    return pairs


def _mean_overlap(masks: Tensor, others: Tensor) -> float:
    """Mean intersection over union of pairs of masks, 1 for two empty ones."""
    union = (masks | others).flatten(1).sum(1)
    inside = (masks & others).flatten(1).sum(1)
    return torch.where(union > 0, inside / union.clamp(min=1), 1.).mean().item()
