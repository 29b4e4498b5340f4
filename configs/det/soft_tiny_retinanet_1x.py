# The authors of SOFT released no detection settings: these are PVT's.
_base_ = [
    '../_base_/models/retinanet_fpn.py', '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_1x_adamw_retinanet.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        type='mmpretrain.SOFT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        pretrain_size=224,
        init_cfg=dict(type='Pretrained', checkpoint='published://soft_tiny')),
    neck=dict(in_channels=[64, 128, 320, 512]))
