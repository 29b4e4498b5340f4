"""Detectors as they are exported, with box decoding and NMS.

The number of detections is data-dependent, so outputs are padded to ``max_per_img`` of
the config: unused rows have label -1 and score 0.
"""
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import RoIAlign
from torch import Tensor, nn

from .base import DeployModel, unsupported
from .layers import StridedFPN
from .operators import padded_nms, pyramid_roi_align


class DeployDenseDetector(DeployModel):
    """A single-stage detector with anchors, such as RetinaNet.

    It outputs ``dets``, x1, y1, x2, y2 in pixels and the score, best first, and
    ``labels``, their classes.
    """

    output_names = ('dets', 'labels')

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, K, 5) and int64 (B, K)."""
        cfg = self.model.test_cfg
        boxes, scores, labels, _ = nms_candidates(
            self.model.bbox_head, self.network(image), image.shape[2:], cfg.nms_pre,
            cfg.get('score_thr', 0), cfg.get('min_bbox_size', -1))
        return grouped_nms(boxes, scores, labels, cfg.nms, cfg.max_per_img)

    def network(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Class logits and box deltas of every feature map."""
        return self.model.bbox_head(self.model.extract_feat(self.preprocess(image)))


class DeployTwoStageDetector(DeployModel):
    """Faster R-CNN or Mask R-CNN.

    The outputs are those of :class:`DeployDenseDetector` and, with a mask head,
    ``masks``: probabilities on a grid over each box, see :func:`paste_masks`.
    """

    def __init__(self, model: nn.Module):
        from mmdet.models import FPN
        super().__init__(model)
        self.output_names = ('dets', 'labels', 'masks')[:2 + self.model.with_mask]
        neck = self.model.neck
        if type(neck) is FPN and not neck.add_extra_convs:
            self.model.neck = StridedFPN(neck)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> (B, K, 5), int64 (B, K), and (B, K, 28, 28)."""
        maps, rpn_outputs = self.network(image)
        shape = image.shape[2:]
        proposals, exists = self._propose(rpn_outputs, shape)
        dets, labels = self._detect(maps, proposals, exists, shape)
        if not self.model.with_mask:
            return dets, labels
        return dets, labels, self._segment(maps, dets, labels)

    def network(self, image: Tensor) -> tuple[Sequence[Tensor], tuple[list, list]]:
        """Feature maps of the pyramid, and logits and deltas of the RPN on them."""
        maps = self.model.extract_feat(self.preprocess(image))
        return maps, self.model.rpn_head(maps)

    def _propose(self, rpn_outputs: tuple[list, list], shape: Sequence[int]
                 ) -> tuple[Tensor, Tensor]:
        """Proposals (B, P, 4), and a mask of the rows in use, bool (B, P)."""
        head = self.model.rpn_head
        cfg = head.test_cfg
        boxes, scores, _, levels = nms_candidates(
            head, rpn_outputs, shape, cfg.nms_pre, None, cfg.get('min_bbox_size', -1))
        dets, groups = grouped_nms(boxes, scores, levels, cfg.nms, cfg.max_per_img)
        return dets[..., :4], groups >= 0

    def _detect(self, maps: Sequence[Tensor], proposals: Tensor, exists: Tensor,
                shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Boxes with scores (B, K, 5), and labels (B, K)."""
        roi_head = self.model.roi_head
        head, cfg = roi_head.bbox_head, roi_head.test_cfg
        batch_size = exists.shape[0]
        logits, deltas = head(extract_roi_features(
            roi_head.bbox_roi_extractor, maps, proposals))
        scores = logits.softmax(-1)[:, :-1]  # (B * P, classes)
        num_classes, num_boxes = scores.shape[1], deltas.shape[1] // 4
        boxes = head.bbox_coder.decode(
            proposals.reshape(-1, 1, 4).expand(-1, num_boxes, -1).reshape(-1, 4),
            deltas.reshape(-1, 4), max_shape=shape)
        boxes = boxes.reshape(batch_size, -1, num_boxes, 4).expand(
            -1, -1, num_classes, -1)  # num_boxes: 1 if class-agnostic, or num_classes
        scores = scores.reshape(batch_size, -1, num_classes)
        scores = scores * ((scores > cfg.score_thr) & exists[..., None])
        labels = torch.arange(num_classes, device=scores.device).expand_as(scores)
        return grouped_nms(boxes.flatten(1, 2), scores.flatten(1), labels.flatten(1),
                           cfg.nms, cfg.get('max_per_img', -1))

    def _segment(self, maps: Sequence[Tensor], dets: Tensor, labels: Tensor) -> Tensor:
        """Mask probabilities, (B, K, h, w)."""
        roi_head = self.model.roi_head
        masks = roi_head.mask_head(extract_roi_features(
            roi_head.mask_roi_extractor, maps, dets[..., :4])).sigmoid()
        index = labels.clamp(min=0).flatten()[:, None, None, None]
        if masks.shape[1] == 1:  # class-agnostic
            index = torch.zeros_like(index)
        masks = masks.gather(1, index.expand(-1, -1, *masks.shape[2:]))
        return masks.reshape(*labels.shape, *masks.shape[2:])


def nms_candidates(head: Any, outputs: tuple[list, list], shape: Sequence[int],
                   nms_pre: int, score_thr: float | None, min_size: float
                   ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Select boxes for NMS as MMDetection does.

    Args:
        head (nn.Module): Anchor head of MMDetection.
        outputs (tuple[list, list]): Its outputs, logits and deltas of L feature maps.
        shape (Sequence[int]): Height and width of the image that boxes are clipped to.
        nms_pre (int): Number of boxes N per feature map.
        score_thr (float, optional): Scores must be greater. None: no threshold.
        min_size (float): Width and height of a box must be greater.

    Returns:
        tuple[Tensor, ...]: Boxes (B, L * N, 4), scores, labels and indices of the
        feature map, (B, L * N). Rows without a box have score 0.
    """
    priors = head.prior_generator.grid_priors(
        [logits.shape[-2:] for logits in outputs[0]], dtype=outputs[0][0].dtype,
        device=outputs[0][0].device)
    found = []
    for level, (logits, deltas, prior) in enumerate(zip(*outputs, priors)):
        batch_size = logits.shape[0]
        logits = logits.permute(0, 2, 3, 1).reshape(
            batch_size, -1, head.cls_out_channels)
        deltas = deltas.permute(0, 2, 3, 1).reshape(batch_size, -1, 4)
        scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[
            ..., :-1]
        num_classes = scores.shape[-1]
        scores = scores.flatten(1)  # (B, anchors * classes)
        if score_thr is not None:
            scores = scores * (scores > score_thr)
        # Pad small feature maps: k of a top-k must not depend on the image size
        scores, order = F.pad(scores, (0, nms_pre)).topk(nms_pre)  # (B, N)
        anchor = order // num_classes * (scores > 0)
        selected = deltas.gather(1, anchor[..., None].expand(-1, -1, 4))
        boxes = head.bbox_coder.decode(
            prior[anchor.flatten()], selected.flatten(0, 1), max_shape=shape)
        found.append((boxes.reshape(batch_size, -1, 4), scores, order % num_classes,
                      torch.full_like(order, level)))
    boxes, scores, labels, levels = (torch.cat(part, 1) for part in zip(*found))
    if min_size >= 0:
        sides = boxes[..., 2:] - boxes[..., :2]
        scores = scores * (sides > min_size).all(-1)
    return boxes, scores, labels, levels


def grouped_nms(boxes: Tensor, scores: Tensor, groups: Tensor, nms: dict,
                max_output: int) -> tuple[Tensor, Tensor]:
    """Apply NMS within each group, such as a class, as ``mmcv.ops.batched_nms`` does.

    Args:
        boxes (Tensor): x1, y1, x2, y2, (B, N, 4).
        scores (Tensor): (B, N), 0 where there is no box.
        groups (Tensor): int64, (B, N).
        nms (dict): Config with ``type='nms'``.
        max_output (int): Number of output rows K.

    Returns:
        tuple[Tensor, Tensor]: Boxes with scores, best first, (B, K, 5), and their
        groups, -1 in unused rows, (B, K).
    """
    shifted = boxes
    if not nms.get('class_agnostic', False):
        # Move groups apart by the largest coordinate so that they never overlap
        largest = (boxes * (scores > 0)[..., None]).amax((1, 2))[:, None, None]
        shifted = boxes + groups[..., None].to(boxes.dtype) * (largest + 1)
    index = padded_nms(shifted, scores, nms['iou_threshold'], max_output)
    exists = index >= 0
    index = index.clamp(min=0)
    dets = torch.cat([boxes, scores[..., None]], -1)
    dets = dets.gather(1, index[..., None].expand(-1, -1, 5)) * exists[..., None]
    return dets, torch.where(exists, groups.gather(1, index), -1)


def extract_roi_features(extractor: Any, maps: Sequence[Tensor], boxes: Tensor
                         ) -> Tensor:
    """Extract the features of boxes, each from the feature map for its size.

    Args:
        extractor (nn.Module): ``SingleRoIExtractor``.
        maps (Sequence[Tensor]): Feature maps, of which the first ones are used.
        boxes (Tensor): (B, K, 4).

    Returns:
        Tensor: (B * K, C, size, size).
    """
    layers = extractor.roi_layers
    image = torch.arange(boxes.shape[0], dtype=boxes.dtype, device=boxes.device)
    image = image[:, None, None].expand(-1, boxes.shape[1], 1)
    rois = torch.cat([image, boxes], -1).flatten(0, 1)  # (B * K, 5)
    sides = rois[:, 3:] - rois[:, 1:3]
    scale = sides.prod(-1).sqrt() / extractor.finest_scale + 1e-6
    # floor(log2(scale)), clamped, by comparisons: exact in every runtime
    levels = torch.zeros_like(scale, dtype=torch.long)
    for i in range(1, len(layers)):
        levels = levels + (scale >= 2**i)
    return pyramid_roi_align(
        maps[:len(layers)], rois, levels, [layer.spatial_scale for layer in layers],
        layers[0].output_size[0], layers[0].sampling_ratio)


def paste_masks(masks: Tensor, boxes: Tensor, shape: Sequence[int],
                threshold: float = 0.5) -> Tensor:
    """Turn mask probabilities within boxes into masks of the whole image.

    Args:
        masks (Tensor): Probabilities on a grid over each box, (K, h, w).
        boxes (Tensor): x1, y1, x2, y2 in pixels, (K, 4).
        shape (Sequence[int]): Height and width of the image.
        threshold (float): Smallest probability inside a mask. Defaults to 0.5.

    Returns:
        Tensor: bool, (K, H, W).
    """
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
    if not len(masks):
        return masks.new_zeros((0, *shape), dtype=torch.bool)
    pasted, _ = _do_paste_mask(masks[:, None], boxes, *shape, skip_empty=False)
    return pasted >= threshold


def deploy_detector(model: Any) -> DeployModel | None:
    """Wrap a detector for export.

    Args:
        model (nn.Module): Any model, in eval mode.

    Returns:
        DeployModel: None if the model is not a single-stage or two-stage detector.

    Raises:
        InputError: If it is one that cannot be exported.
    """
    from mmdet.models import SingleStageDetector, TwoStageDetector
    for base, deployed, find_obstacle in (
            (SingleStageDetector, DeployDenseDetector, _single_stage_obstacle),
            (TwoStageDetector, DeployTwoStageDetector, _two_stage_obstacle)):
        # Subclasses that override predict() are other kinds of detectors
        if isinstance(model, base) and type(model).predict is base.predict:
            if obstacle := find_obstacle(model):
                raise unsupported(model, obstacle)
            return deployed(model)
    return None


def _single_stage_obstacle(model: Any) -> str:
    """Why a single-stage detector cannot be exported; empty if it can."""
    from mmdet.models import RetinaHead
    if type(model.bbox_head) is not RetinaHead:
        return f'its head is a {type(model.bbox_head).__name__}; expected a RetinaHead'
    return _test_cfg_obstacle('model.test_cfg', model.test_cfg, 'nms_pre')


def _two_stage_obstacle(model: Any) -> str:
    """Why a two-stage detector cannot be exported; empty if it can."""
    from mmdet.models import BBoxHead, FCNMaskHead, RPNHead, StandardRoIHead
    if not model.with_rpn or type(model.rpn_head) is not RPNHead:
        return 'it has no RPNHead'
    head, test_cfg = model.roi_head, model.test_cfg
    if type(head) is not StandardRoIHead or head.with_shared_head:
        return 'its roi_head is not a StandardRoIHead, or has a shared head'
    bbox_head = head.bbox_head
    if not isinstance(bbox_head, BBoxHead) or not bbox_head.with_reg or getattr(
            bbox_head, 'custom_activation', False):
        return (f'its bbox_head is a {type(bbox_head).__name__}; expected a BBoxHead '
                'with box regression and softmax over classes')
    extractors = [head.bbox_roi_extractor]
    if model.with_mask:
        extractors.append(head.mask_roi_extractor)
        if type(head.mask_head) is not FCNMaskHead:
            return (f'its mask_head is a {type(head.mask_head).__name__}; expected an '
                    'FCNMaskHead')
        if test_cfg.rcnn.mask_thr_binary < 0:
            return 'model.test_cfg.rcnn.mask_thr_binary is negative'
    if not all(map(_is_aligned_roi_align, extractors)):
        return 'its RoI extractor is not a SingleRoIExtractor with an aligned RoIAlign'
    return (_test_cfg_obstacle('model.test_cfg.rpn', test_cfg.rpn, 'nms_pre')
            or _test_cfg_obstacle('model.test_cfg.rcnn', test_cfg.rcnn))


def _is_aligned_roi_align(extractor: Any) -> bool:
    from mmdet.models import SingleRoIExtractor
    layer = extractor.roi_layers[0]
    return (type(extractor) is SingleRoIExtractor and isinstance(layer, RoIAlign)
            and layer.aligned and layer.pool_mode == 'avg')


def _test_cfg_obstacle(name: str, cfg: dict, *keys: str) -> str:
    if cfg['nms'].get('type', 'nms') != 'nms':
        return f"{name}.nms.type is {cfg['nms']['type']}; expected nms"
    for key in (*keys, 'max_per_img'):
        if cfg.get(key, -1) <= 0:
            return (f'{name}.{key} is {cfg.get(key)}; expected a positive number, '
                    'which fixes the shape of the outputs')
    return ''
