# The authors of EcoFormer released no detection settings: these are PVT's.
_base_ = [
    '../_base_/models/mask-rcnn_fpn.py', '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_1x_adamw.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        type='mmpretrain.EcoFormerPVT',
        arch='b0',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='published://ecoformer_pvt_b0')),
    neck=dict(in_channels=[32, 64, 160, 256]))

custom_hooks = [dict(type='HashFittingHook')]
