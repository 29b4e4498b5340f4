# SwiftFormer was published without UperNet: the settings are Swin's.
_base_ = [
    '../_base_/models/upernet.py', '../_base_/datasets/ade20k_bs2.py',
    '../_base_/schedules/ade_160k_adamw.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        type='mmpretrain.SwiftFormer',
        arch='xs',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='published://swiftformer_xs')),
    decode_head=dict(in_channels=[48, 56, 112, 220]),
    auxiliary_head=dict(in_channels=112))
