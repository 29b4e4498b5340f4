"""Calls of mmcv's operators, recorded by record.py and repeated by the tests.

Each takes ``mmcv.ops`` and the tensors of the same name in ``operators.npz``, and
returns tensors.
"""
import torch


def nms_match(ops, dets):
    groups = ops.nms_match(dets, 0.4)
    return torch.cat(groups), torch.tensor([len(group) for group in groups])


def masked_conv2d(ops, features, mask, weight, bias):
    return ops.masked_conv2d(features, mask, weight, bias, (1, 2))


def ms_deform_attn(ops, value, shapes, starts, locations, weights):
    function = ops.multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    return function.apply(value, shapes, starts, locations, weights, 64)


def sync_bn(ops, input, running_mean, running_var, weight, bias):
    statistics = running_mean.clone(), running_var.clone()
    output = ops.sync_bn.SyncBatchNormFunction.apply(
        input, *statistics, weight, bias, 0.3, 1e-3, None, 1, 'default')
    return output, *statistics


CALLS = dict(
    deform_conv=lambda ops, input, offset, weight: ops.deform_conv2d(
        input, offset, weight, 1, 1),
    deform_conv_groups=lambda ops, input, offset, weight: ops.deform_conv2d(
        input, offset, weight, (2, 1), (1, 2), (1, 2), 2, 2),
    modulated=lambda ops, input, offset, mask, weight: ops.modulated_deform_conv2d(
        input, offset, mask, weight, None, 1, 1),
    modulated_groups=lambda ops, input, offset, mask, weight, bias: (
        ops.modulated_deform_conv2d(
            input, offset, mask, weight, bias, (1, 2), (2, 1), (2, 1), 2, 2)),
    # as DyHead calls it, with offsets and masks of another level
    modulated_larger_maps=lambda ops, input, offset, mask, weight: (
        ops.modulated_deform_conv2d(input, offset, mask, weight, None, 1, 1)),
    ms_deform_attn=ms_deform_attn,
    carafe=lambda ops, features, masks: ops.carafe(features, masks, 3, 1, 2),
    carafe_groups=lambda ops, features, masks: ops.carafe(features, masks, 5, 2, 3),
    psamask_collect=lambda ops, input: ops.psa_mask.psa_mask(input, 0, (5, 3)),
    psamask_distribute=lambda ops, input: ops.psa_mask.psa_mask(input, 1, (5, 3)),
    psamask_wide=lambda ops, input: ops.psa_mask.psa_mask(input, 0, (4, 11)),
    deform_roi_pool=lambda ops, input, rois, offset: ops.deform_roi_pool(
        input, rois, offset, (3, 2), 0.25, 0, 0.125),
    deform_roi_pool_fixed=lambda ops, input, rois, offset: ops.deform_roi_pool(
        input, rois, offset, (2, 2), 0.5, 2, 0.25),
    deform_roi_pool_outside=lambda ops, input, rois: ops.deform_roi_pool(
        input, rois, None, (2, 3), 0.25, 0),
    roi_align_max=lambda ops, input, rois: ops.roi_align(
        input, rois, (3, 2), 0.25, 0, 'max', True),
    roi_align_max_fixed=lambda ops, input, rois: ops.roi_align(
        input, rois, (2, 2), 0.5, 2, 'max', False),
    masked_conv2d=masked_conv2d,
    sync_bn=sync_bn,
    nms_match=nms_match,
    soft_nms_naive=lambda ops, boxes, scores: ops.soft_nms(
        boxes, scores, 0.3, method='naive', offset=1),
    soft_nms_linear=lambda ops, boxes, scores: ops.soft_nms(
        boxes, scores, 0.3, min_score=0.05, method='linear'),
    soft_nms_gaussian=lambda ops, boxes, scores: ops.soft_nms(
        boxes, scores, 0.3, sigma=0.4, min_score=0.02, method='gaussian'),
)
