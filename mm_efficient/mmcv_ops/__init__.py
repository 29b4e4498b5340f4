"""Operators of ``mmcv._ext`` in PyTorch and torchvision, without a compiler.

:mod:`mm_efficient.compat` serves them where MMCV was installed without its compiled
extension. Argument names, their order and the in-place outputs follow the calls in
``mmcv/ops/*.py``, the same in mmcv 2.1.0 and onedl-mmcv 2.3.6. All compute in at least
float32. torchvision is imported on first use, because classification does not need it.
"""
from .carafe import (
    carafe_backward,
    carafe_forward,
    carafe_naive_backward,
    carafe_naive_forward,
)
from .deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from .deform_roi_pool import deform_roi_pool_backward, deform_roi_pool_forward
from .focal_loss import sigmoid_focal_loss_backward, sigmoid_focal_loss_forward
from .masked_conv import masked_col2im_forward, masked_im2col_forward
from .ms_deform_attn import ms_deform_attn_backward, ms_deform_attn_forward
from .nms import nms, nms_match, softnms
from .psamask import psamask_backward, psamask_forward
from .roi_align import roi_align_backward, roi_align_forward
from .roi_align_rotated import roi_align_rotated_backward, roi_align_rotated_forward
from .rotated_boxes import (
    box_iou_rotated,
    diff_iou_rotated_sort_vertices_forward,
    nms_rotated,
)
from .sync_bn import (
    sync_bn_backward_data,
    sync_bn_backward_param,
    sync_bn_forward_mean,
    sync_bn_forward_output,
    sync_bn_forward_var,
)

__all__ = [
    'box_iou_rotated', 'carafe_backward', 'carafe_forward', 'carafe_naive_backward',
    'carafe_naive_forward', 'deform_conv_backward_input',
    'deform_conv_backward_parameters', 'deform_conv_forward',
    'deform_roi_pool_backward', 'deform_roi_pool_forward',
    'diff_iou_rotated_sort_vertices_forward', 'masked_col2im_forward',
    'masked_im2col_forward', 'modulated_deform_conv_backward',
    'modulated_deform_conv_forward', 'ms_deform_attn_backward',
    'ms_deform_attn_forward', 'nms', 'nms_match', 'nms_rotated', 'psamask_backward',
    'psamask_forward', 'roi_align_backward', 'roi_align_forward',
    'roi_align_rotated_backward', 'roi_align_rotated_forward',
    'sigmoid_focal_loss_backward', 'sigmoid_focal_loss_forward', 'softnms',
    'sync_bn_backward_data', 'sync_bn_backward_param', 'sync_bn_forward_mean',
    'sync_bn_forward_output', 'sync_bn_forward_var',
]
