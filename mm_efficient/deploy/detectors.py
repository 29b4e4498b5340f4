"""Detectors as they are deployed: decoding and suppression are part of them.

There are always as many rows as the config allows at most: how many objects an image
has, a tracer does not know.
"""
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.ops import RoIAlign
from torch import Tensor, nn

from .base import DeployModel, refusal
from .operators import pyramid_roi_align, suppress


class DeployDenseDetector(DeployModel):
    """A detector of one stage with anchors, as RetinaNet.

    ``dets`` are corners x1, y1, x2, y2 in pixels of the image, and scores, best first;
    ``labels`` the numbers of their classes.
    """

    output_names = ('dets', 'labels')

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) -> (B, K, 5) and int64 (B, K)."""
        cfg = self.model.test_cfg
        boxes, scores, labels, _ = dense_candidates(
            self.model.bbox_head, self.network(image), image.shape[2:], cfg.nms_pre,
            cfg.get('score_thr', 0), cfg.get('min_bbox_size', -1))
        return best_boxes(boxes, scores, labels, cfg.nms, cfg.max_per_img)

    def network(self, image: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of the classes and deltas of the boxes, of every level."""
        return self.model.bbox_head(self.model.extract_feat(self.preprocess(image)))


class DeployTwoStageDetector(DeployModel):
    """Faster R-CNN or Mask R-CNN.

    Outputs as of :class:`DeployDenseDetector`; ``masks``, if the model has any, are
    probabilities on a grid over every box, see :func:`paste_masks`.
    """

    def __init__(self, model: nn.Module):
        from mmdet.models import FPN
        super().__init__(model)
        self.output_names = ('dets', 'labels', 'masks')[:2 + model.with_mask]
        if type(model.neck) is FPN and not model.neck.add_extra_convs:
            model.neck = PooledFPN(model.neck)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> (B, K, 5), int64 (B, K), and (B, K, 28, 28)."""
        maps, dense = self.network(image)
        size = image.shape[2:]
        dets, labels = self._detect(maps, *self._propose(dense, size), size)
        if not self.model.with_mask:
            return dets, labels
        return dets, labels, self._segment(maps, dets, labels)

    def network(self, image: Tensor) -> tuple[Sequence[Tensor], tuple[list, list]]:
        """Levels of the pyramid, and logits and deltas of the proposals on them."""
        maps = self.model.extract_feat(self.preprocess(image))
        return maps, self.model.rpn_head(maps)

    def _propose(self, dense: tuple[list, list], size: Sequence[int]):
        """Proposals (B, P, 4), and whether there is one, (B, P)."""
        head = self.model.rpn_head
        cfg = head.test_cfg
        boxes, scores, _, levels = dense_candidates(
            head, dense, size, cfg.nms_pre, None, cfg.get('min_bbox_size', -1))
        dets, kept = best_boxes(boxes, scores, levels, cfg.nms, cfg.max_per_img)
        return dets[..., :4], kept >= 0

    def _detect(self, maps: Sequence[Tensor], proposals: Tensor, exists: Tensor,
                size: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Boxes with scores (B, K, 5), and labels (B, K)."""
        roi_head = self.model.roi_head
        head, cfg = roi_head.bbox_head, roi_head.test_cfg
        batch, number = exists.shape[0], cfg.get('max_per_img', -1)
        logits, deltas = head(extract_regions(
            roi_head.bbox_roi_extractor, maps, proposals))
        scores = logits.softmax(-1)[:, :-1]  # (B * P, classes)
        classes = scores.shape[1]
        boxes = head.bbox_coder.decode(
            proposals.reshape(-1, 1, 4).expand(-1, deltas.shape[1] // 4, -1).reshape(
                -1, 4), deltas.reshape(-1, 4), max_shape=size)
        boxes = boxes.reshape(batch, -1, deltas.shape[1] // 4, 4).expand(
            -1, -1, classes, -1)  # one box for all classes, or one for each
        scores = scores.reshape(batch, -1, classes)
        scores = scores * ((scores > cfg.score_thr) & exists[..., None])
        labels = torch.arange(classes, device=scores.device).expand_as(scores)
        return best_boxes(boxes.flatten(1, 2), scores.flatten(1), labels.flatten(1),
                          cfg.nms, number)

    def _segment(self, maps: Sequence[Tensor], dets: Tensor, labels: Tensor) -> Tensor:
        """Probabilities of the masks, (B, K, h, w)."""
        roi_head = self.model.roi_head
        masks = roi_head.mask_head(extract_regions(
            roi_head.mask_roi_extractor, maps, dets[..., :4])).sigmoid()
        index = labels.clamp(min=0).flatten()[:, None, None, None]
        if masks.shape[1] == 1:  # one mask for all classes
            index = torch.zeros_like(index)
        masks = masks.gather(1, index.expand(-1, -1, *masks.shape[2:]))
        return masks.reshape(*labels.shape, *masks.shape[2:])


class PooledFPN(nn.Module):
    """``FPN`` whose coarsest levels are every other pixel of the finer one.

    The original pools them, which `torch.export` takes for even sizes only.

    Args:
        neck (nn.Module): ``FPN`` without extra convolutions, changed in place.
    """

    def __init__(self, neck: nn.Module):
        super().__init__()
        self.pooled = neck.num_outs - len(neck.fpn_convs)
        neck.num_outs = len(neck.fpn_convs)
        self.neck = neck

    def forward(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Levels of the backbone to those of the pyramid."""
        levels = list(self.neck(inputs))
        for _ in range(self.pooled):
            levels.append(levels[-1][..., ::2, ::2])
        return tuple(levels)


def dense_candidates(head: nn.Module, dense: tuple[list, list], size: Sequence[int],
                     nms_pre: int, score_thr: float | None, min_size: float
                     ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best boxes of every level, before suppression, as MMDetection selects them.

    Args:
        head (nn.Module): Head of MMDetection with anchors.
        dense (tuple[list, list]): What it gives: logits and deltas of every level.
        size (Sequence[int]): Height and width of the image, which boxes are clipped to.
        nms_pre (int): Boxes per level N.
        score_thr (float, optional): Boxes with less or the same score are none. None
            for no bound.
        min_size (float): Boxes of less or the same width or height are none.

    Returns:
        tuple[Tensor, ...]: For all L levels boxes (B, L * N, 4), scores, 0 where there
        is none, labels and levels, (B, L * N).
    """
    priors = head.prior_generator.grid_priors(
        [level.shape[-2:] for level in dense[0]], dtype=dense[0][0].dtype,
        device=dense[0][0].device)
    found = []
    for index, (logits, deltas, prior) in enumerate(zip(*dense, priors)):
        batch, classes = logits.shape[0], head.cls_out_channels
        logits = logits.permute(0, 2, 3, 1).reshape(batch, -1, classes)
        deltas = deltas.permute(0, 2, 3, 1).reshape(batch, -1, 4)
        scores = logits.sigmoid() if head.use_sigmoid_cls else logits.softmax(-1)[
            ..., :-1]
        classes = scores.shape[-1]
        scores = scores.flatten(1)  # (B, anchors * classes)
        if score_thr is not None:
            scores = scores * (scores > score_thr)
        # Levels with fewer are filled up: a number that depends on the size of the
        # image cannot be asked for
        scores, order = F.pad(scores, (0, nms_pre)).topk(nms_pre)  # (B, N)
        anchor = order // classes * (scores > 0)
        chosen = deltas.gather(1, anchor[..., None].expand(-1, -1, 4))
        boxes = head.bbox_coder.decode(
            prior[anchor.flatten()], chosen.flatten(0, 1), max_shape=size)
        found.append((boxes.reshape(batch, -1, 4), scores, order % classes,
                      torch.full_like(order, index)))
    boxes, scores, labels, levels = (torch.cat(part, 1) for part in zip(*found))
    if min_size >= 0:
        sides = boxes[..., 2:] - boxes[..., :2]
        scores = scores * (sides > min_size).all(-1)
    return boxes, scores, labels, levels


def best_boxes(boxes: Tensor, scores: Tensor, groups: Tensor, nms: dict,
               number: int) -> tuple[Tensor, Tensor]:
    """Suppression within every group.

    Args:
        boxes (Tensor): (B, N, 4).
        scores (Tensor): (B, N), 0 where there is no box.
        groups (Tensor): int64, (B, N).
        nms (dict): Config of ``type='nms'``.
        number (int): Boxes K that are kept at most.

    Returns:
        tuple[Tensor, Tensor]: Boxes with scores, best first, (B, K, 5), and their
        groups, -1 where there is no box, (B, K).
    """
    # As MMCV: groups are moved apart by the largest coordinate
    largest = (boxes * (scores > 0)[..., None]).amax((1, 2))[:, None, None]
    apart = boxes
    if not nms.get('class_agnostic', False):
        apart = boxes + groups[..., None].to(boxes.dtype) * (largest + 1)
    index = suppress(apart, scores, nms['iou_threshold'], number)
    exists = index >= 0
    index = index.clamp(min=0)
    dets = torch.cat([boxes, scores[..., None]], -1)
    dets = dets.gather(1, index[..., None].expand(-1, -1, 5)) * exists[..., None]
    return dets, torch.where(exists, groups.gather(1, index), -1)


def extract_regions(extractor: nn.Module, maps: Sequence[Tensor], boxes: Tensor
                    ) -> Tensor:
    """Features of boxes, each from the level of its size.

    Args:
        extractor (nn.Module): ``SingleRoIExtractor``.
        maps (Sequence[Tensor]): Levels; the first ones are used.
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
    # floor(log2(scale)) within the levels, by comparisons: exact in every runtime
    levels = sum((scale >= 2**i).long() for i in range(1, len(layers)))
    return pyramid_roi_align(
        maps[:len(layers)], rois, levels, [layer.spatial_scale for layer in layers],
        layers[0].output_size[0], layers[0].sampling_ratio)


def paste_masks(masks: Tensor, boxes: Tensor, size: Sequence[int],
                threshold: float = 0.5) -> Tensor:
    """Masks of boxes as masks of the image.

    Args:
        masks (Tensor): Probabilities on a grid over every box, (K, h, w).
        boxes (Tensor): Corners, in pixels of the image, (K, 4).
        size (Sequence[int]): Height and width of the image.
        threshold (float): Probability from which a pixel counts. Defaults to 0.5.

    Returns:
        Tensor: bool, (K, H, W).
    """
    from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
    if not len(masks):
        return masks.new_zeros((0, *size), dtype=torch.bool)
    pasted, _ = _do_paste_mask(masks[:, None], boxes, *size, skip_empty=False)
    return pasted >= threshold


def deploy_detector(model: nn.Module) -> DeployModel | None:
    """What is deployed of a detector.

    Args:
        model (nn.Module): Any model, in eval mode.

    Returns:
        DeployModel: None if the model is no detector of one or two stages.

    Raises:
        InputError: If it is one that cannot be deployed.
    """
    from mmdet.models import SingleStageDetector, TwoStageDetector
    for base, deployed, obstacle in (
            (SingleStageDetector, DeployDenseDetector, _one_stage_obstacle),
            (TwoStageDetector, DeployTwoStageDetector, _two_stage_obstacle)):
        # A class that predicts in another way is something else
        if isinstance(model, base) and type(model).predict is base.predict:
            if reason := obstacle(model):
                raise refusal(model, reason)
            return deployed(model)
    return None


def _one_stage_obstacle(model: nn.Module) -> str:
    """Why a detector of one stage is none that can be deployed; empty if it is."""
    from mmdet.models import RetinaHead
    if type(model.bbox_head) is not RetinaHead:
        return (f'its head is a {type(model.bbox_head).__name__}; expected a '
                'RetinaHead')
    return _test_cfg_obstacle('model.test_cfg', model.test_cfg, 'nms_pre')


def _two_stage_obstacle(model: nn.Module) -> str:
    """Why a detector of two stages is none that can be deployed; empty if it is."""
    from mmdet.models import (
        BBoxHead,
        FCNMaskHead,
        RPNHead,
        SingleRoIExtractor,
        StandardRoIHead,
    )
    if not model.with_rpn or type(model.rpn_head) is not RPNHead:
        return 'it has no RPNHead'
    head = model.roi_head
    if type(head) is not StandardRoIHead or head.with_shared_head:
        return 'its roi_head is no StandardRoIHead, or has a shared head'
    box_head = head.bbox_head
    if not isinstance(box_head, BBoxHead) or not box_head.with_reg or getattr(
            box_head, 'custom_activation', False):
        return (f'its bbox_head is a {type(box_head).__name__}; expected a BBoxHead '
                'with boxes and a softmax over classes')
    if model.with_mask and type(head.mask_head) is not FCNMaskHead:
        return f'its mask_head is a {type(head.mask_head).__name__}'
    if model.with_mask and model.test_cfg.rcnn.mask_thr_binary < 0:
        return 'model.test_cfg.rcnn.mask_thr_binary is negative'
    extractors = [head.bbox_roi_extractor]
    if model.with_mask:
        extractors.append(head.mask_roi_extractor)
    for extractor in extractors:
        layer = extractor.roi_layers[0]
        if type(extractor) is not SingleRoIExtractor or not isinstance(
                layer, RoIAlign) or not layer.aligned or layer.pool_mode != 'avg':
            return ('it extracts regions by something else than an aligned RoIAlign '
                    'of one level each')
    return (_test_cfg_obstacle('model.test_cfg.rpn', model.test_cfg.rpn, 'nms_pre')
            or _test_cfg_obstacle('model.test_cfg.rcnn', model.test_cfg.rcnn))


def _test_cfg_obstacle(name: str, cfg: dict, *numbers: str) -> str:
    if cfg['nms'].get('type', 'nms') != 'nms':
        return f"{name}.nms.type is {cfg['nms']['type']}; expected nms"
    for key in (*numbers, 'max_per_img'):
        if cfg.get(key, -1) <= 0:
            return (f'{name}.{key} is {cfg.get(key)}; expected a positive number, how '
                    'many rows the outputs have depends on it')
    return ''
