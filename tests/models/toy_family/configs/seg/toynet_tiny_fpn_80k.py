_base_ = [
    '../_base_/models/fpn.py', '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade_80k_adamw.py', '../_base_/default_runtime.py'
]
model = dict(
    backbone=dict(
        type='mmpretrain.ToyNet', arch='tiny', out_indices=(0, 1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='published://toynet_tiny')),
    neck=dict(in_channels=[8, 16, 24, 32]))
