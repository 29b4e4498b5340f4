"""One training step and predictions of any stock config, on images of noise."""
import contextlib
import copy
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from mmengine.structures import InstanceData, PixelData
from torch import nn

from mm_efficient.models.base import fit_where_needed
from mm_efficient.runs.traversal import nested_dicts, type_name

Size = tuple[int, int]  # height and width in pixels
SIZES: tuple[Size, ...] = ((96, 96), (64, 128))
BATCH = 2
# Trackers that train nothing: their detector is trained by itself
_UNTRAINED = ('ByteTrack', 'DeepSORT', 'OCSORT', 'SORT', 'StrongSORT')
_FEWER = dict(nms_pre=64, max_per_img=32, num=32, num_points=256, num_queries=40)
_VIDEO = ('Mask2FormerVideo', 'MaskFormerVideo', 'MaskTrackRCNN', 'QDTrack')


def trial_config(cfg: Config) -> Config:
    """Prepare a config for a trial: nothing is downloaded, small images stay small.

    Args:
        cfg (Config): A complete config; not changed.

    Returns:
        Config: A copy.
    """
    cfg = copy.deepcopy(cfg)
    if type_name(cfg.model) in _UNTRAINED:
        preprocessor = cfg.model.get('data_preprocessor') or {}
        cfg.model = cfg.model.detector
        cfg.model.setdefault('data_preprocessor', dict(
            preprocessor, type='DetDataPreprocessor'))
        cfg.model.data_preprocessor.pop('use_det_processor', None)
    for part in nested_dicts(cfg.model):
        for key in ('init_cfg', 'pretrained', 'teacher_ckpt'):
            if part.get(key):
                part[key] = None
        if 'size' in part and type_name(part) == 'SegDataPreProcessor':
            part['size'] = max(SIZES)
        if type_name(part) == 'PPYOLOEDetDataPreprocessor':  # stacks the images
            part['batch_augments'][0].update(random_size_range=(96, 96), interval=1)
        else:
            part.pop('batch_augments', None)
        if type_name(part) == 'MMSyncBN':  # needs a process group
            part['type'] = 'SyncBN'
        if part.get('clip_border') is False:  # masks of untrained boxes
            part['clip_border'] = True
        for key, most in _FEWER.items():  # proposals, RoIs, points, queries
            if isinstance(part.get(key), int) and part[key] > most and not (
                    key == 'max_per_img' and 'nms_pre' not in part):
                part[key] = most
        queries = part.get('num_queries', 0)
        if queries and (part.get('test_cfg') or {}).get('max_per_img', 0) > queries:
            part['test_cfg']['max_per_img'] = queries
    return cfg


def run_trial(cfg: Config, sizes: Sequence[Size] = SIZES) -> list[str]:
    """Build a model, train it one step, and predict.

    Args:
        cfg (Config): From :func:`trial_config`.
        sizes (Sequence[Size]): Of the images to predict; training has the first.
            Defaults to ``SIZES``.

    Returns:
        list[str]: Names of the backbone's parameters that got no gradient.

    Raises:
        Exception: Whatever the model raises; ``FloatingPointError`` for a loss that is
            not finite.
    """
    torch.manual_seed(0)
    if 'SSDNeck' in [type_name(part) for part in nested_dicts(cfg.model)]:
        sizes = [(300, 300), (288, 320)]  # its last levels are not padded
    with DefaultScope.overwrite_default_scope(cfg.default_scope), _beside(cfg):
        settings = copy.deepcopy(cfg.model)
        if not settings.get('data_preprocessor') and cfg.get('data_preprocessor'):
            settings['data_preprocessor'] = copy.deepcopy(cfg.data_preprocessor)
        model = revert_sync_batchnorm(MODELS.build(settings))
        model.init_weights()
        unused = _train(model, cfg, sizes[0])
        model.eval()
        for size in sizes:
            with torch.no_grad():
                results = model.test_step(make_batch(cfg, size, training=False))
            assert results
    return unused


@contextlib.contextmanager
def _beside(cfg: Config) -> Iterator[None]:
    """Run beside ``configs/`` of the stock package, where teachers are looked up."""
    before = os.getcwd()
    package = __import__(cfg.default_scope).__file__
    folder = Path(package).parent / '.mim'
    os.chdir(folder if folder.is_dir() else before)
    try:
        yield
    finally:
        os.chdir(before)


def _train(model: nn.Module, cfg: Config, size: Size) -> list[str]:
    wrapper = dict(cfg.get('optim_wrapper') or dict(  # there is none for testing alone
        optimizer=dict(type='SGD', lr=0.01)))
    wrapper['type'] = 'OptimWrapper'  # mixed precision needs a GPU
    for key in ('loss_scale', 'dtype', 'use_fp16'):
        wrapper.pop(key, None)
    optim_wrapper = build_optim_wrapper(model, wrapper)
    model.train()
    MessageHub.get_current_instance().update_info_dict(
        dict(epoch=0, iter=0))  # as a runner does
    batch = model.data_preprocessor(make_batch(cfg, size, training=True), True)
    inputs = batch['inputs']
    while isinstance(inputs, dict):
        inputs = next(iter(inputs.values()))
    fit_where_needed(model, inputs.flatten(0, -4))
    losses = model(**batch, mode='loss')
    loss, _ = model.parse_losses(losses)
    if not torch.isfinite(loss):
        raise FloatingPointError(f'the loss is {loss.item()}')
    loss.backward()
    unused = [name for name, parameter in model.named_parameters()
              if parameter.requires_grad and parameter.grad is None
              and 'backbone.' in name]
    optim_wrapper.step()
    return unused


def make_batch(cfg: Config, size: Size, training: bool) -> dict[str, Any]:
    """Make a batch as a data loader of the config would.

    Args:
        cfg (Config): From :func:`trial_config`.
        size (Size): Of the images.
        training (bool): Whether to train on it.

    Returns:
        dict: Inputs and data samples.
    """
    make = dict(mmpretrain=_classifier_batch, mmdet=_detector_batch,
                mmseg=_segmentor_batch, mmyolo=_yolo_batch,
                mmrotate=_rotated_batch)[cfg.default_scope]
    return make(cfg, size, training)


def _images(size: Size, number: int = BATCH) -> list[torch.Tensor]:
    return [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for _ in range(number)]


def _num_classes(cfg: Config) -> int:
    """The smallest number of classes of any head."""
    found = [part['num_classes'] for part in nested_dicts(cfg.model)
             if isinstance(part.get('num_classes'), int) and 'type' in part]
    return min(found, default=10)


def _classifier_batch(cfg: Config, size: Size, training: bool) -> dict[str, Any]:
    from mmpretrain.structures import DataSample
    several = 'MultiLabel' in type_name(cfg.model.head) \
        or 'CSRA' in type_name(cfg.model.head)
    samples = [DataSample().set_gt_label([i] if several else i) for i in range(BATCH)]
    for sample in samples if several else []:
        sample.set_gt_score(torch.rand(_num_classes(cfg)))
    return dict(inputs=torch.stack(_images(size)), data_samples=samples)


def _segmentor_batch(cfg: Config, size: Size, training: bool) -> dict[str, Any]:
    from mmseg.structures import SegDataSample
    meta = dict(img_shape=size, ori_shape=size, pad_shape=size, padding_size=[0] * 4)
    samples = [SegDataSample(
        metainfo=meta, gt_sem_seg=PixelData(data=torch.randint(
            _num_classes(cfg), (1, *size)))) for _ in range(BATCH)]
    return dict(inputs=_images(size), data_samples=samples)


def _detector_batch(cfg: Config, size: Size, training: bool) -> dict[str, Any]:
    kind = type_name(cfg.model)
    if kind in _VIDEO:
        return _video_batch(cfg, size)
    if kind == 'BaseReID':
        return _reid_batch((256, 128))  # pooled over 8 x 4 positions
    data = _boxes(cfg, size)
    if training and kind == 'SoftTeacher':
        branches = ('sup', 'unsup_teacher', 'unsup_student')
        data = {key: {branch: _boxes(cfg, size)[key] for branch in branches}
                for key in ('inputs', 'data_samples')}
    return data


def _boxes(cfg: Config, size: Size) -> dict[str, Any]:
    from mmdet.testing import demo_mm_inputs
    classes = min(_num_classes(cfg), 80)
    # HTC and its successors have label maps at stride 8
    stride = 8 if type_name(cfg.model) in ('HybridTaskCascade', 'SCNet') else 1
    data = demo_mm_inputs(
        BATCH, (3, *size), num_items=[3] * BATCH, num_classes=max(2, classes),
        with_mask=True, with_semantic=True, sem_seg_output_strides=stride,
        use_box_type=False)
    for sample in data['data_samples']:
        sample.gt_instances.labels %= classes
        sample.set_metainfo(dict(
            batch_input_shape=size, pad_shape=size,
            homography_matrix=np.eye(3, dtype=np.float32),
            scale_factor=(1., 1.)))  # the images have their original size
        if not any('rpn_head' in part for part in nested_dicts(cfg.model)):
            sample.proposals = InstanceData(
                bboxes=sample.gt_instances.bboxes.clone(), scores=torch.rand(3))
    return data


def _yolo_batch(cfg: Config, size: Size, training: bool) -> dict[str, Any]:
    from mmdet.testing import demo_mm_inputs
    from mmyolo.datasets.utils import yolov5_collate
    data = demo_mm_inputs(
        BATCH, (3, *size), num_items=[3] * BATCH, num_classes=_num_classes(cfg),
        use_box_type=True)
    for sample in data['data_samples']:
        sample.set_metainfo(dict(pad_param=None, batch_input_shape=size))
    if not training or type_name(cfg.model.data_preprocessor) == 'DetDataPreprocessor':
        return data
    return yolov5_collate([
        dict(inputs=image, data_samples=sample)
        for image, sample in zip(data['inputs'], data['data_samples'])
    ], use_ms_training=type_name(cfg.model.data_preprocessor).startswith('PPYOLOE'))


def _rotated_batch(cfg: Config, size: Size, training: bool) -> dict[str, Any]:
    from mmrotate.testing import demo_mm_inputs
    data = demo_mm_inputs(BATCH, (3, *size), num_items=[3] * BATCH,
                          num_classes=_num_classes(cfg), use_box_type=True,
                          use_qbox=not any(
                              'gt_bboxes' in (step.get('box_type_mapping') or {})
                              for step in nested_dicts(cfg.train_dataloader)))
    for sample in data['data_samples']:
        sample.set_metainfo(dict(batch_input_shape=size, pad_shape=size))
    return data


def _video_batch(cfg: Config, size: Size) -> dict[str, Any]:
    from mmdet.testing import demo_track_inputs
    return demo_track_inputs(1, 2, key_frames_inds=[0], image_shapes=(3, *size),
                             num_items=[3], num_classes=_num_classes(cfg),
                             with_mask=True)


def _reid_batch(size: Size) -> dict[str, Any]:
    from mmdet.structures import ReIDDataSample
    samples = [ReIDDataSample().set_gt_label(i // 2) for i in range(4)]
    return dict(inputs=_images(size, 4), data_samples=samples)
