# The authors of SOFT released no segmentation settings: these are PVT's.
_base_ = [
    '../_base_/models/fpn.py', '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade_80k_adamw.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        type='mmpretrain.SOFT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        pretrain_size=224,
        init_cfg=dict(type='Pretrained', checkpoint='published://soft_tiny')),
    neck=dict(in_channels=[64, 128, 320, 512]))
