# SwiftFormer was published without RetinaNet: the settings are PVT's.
_base_ = [
    '../_base_/models/retinanet_fpn.py', '../_base_/datasets/coco_detection.py',
    '../_base_/schedules/coco_1x_adamw_retinanet.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        type='mmpretrain.SwiftFormer',
        arch='xs',
        out_indices=(1, 2, 3),
        output_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='published://swiftformer_xs')),
    neck=dict(in_channels=[56, 112, 220], start_level=0))
