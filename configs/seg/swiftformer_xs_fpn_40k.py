# The settings of the paper, of which no code was released.
_base_ = [
    '../_base_/models/fpn.py', '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade_40k_adamw.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        type='mmpretrain.SwiftFormer',
        arch='xs',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='published://swiftformer_xs')),
    neck=dict(in_channels=[48, 56, 112, 220]))
