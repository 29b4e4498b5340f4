# The authors of LowFormer released no detection settings: these are PVT's.
_base_ = [
    '../_base_/models/mask-rcnn_fpn.py', '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_1x_adamw.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        type='mmpretrain.LowFormer',
        arch='b0',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint='published://lowformer_b0')),
    neck=dict(in_channels=[32, 64, 128, 256]))

# Few images per GPU: batch statistics over all GPUs
sync_bn = 'torch'
