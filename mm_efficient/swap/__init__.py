"""Any config of OpenMMLab with a backbone of this package.

    cfg = mm_efficient.swap_backbone(
        'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', 'soft_small_norm')

The stock config is read, not built, but for its backbone, which runs on a blank image.
"""
from .operators import missing_operators
from .swapping import Swap, plan_swap, swap_backbone
from .writing import change_table

__all__ = ['Swap', 'change_table', 'missing_operators', 'plan_swap', 'swap_backbone']
