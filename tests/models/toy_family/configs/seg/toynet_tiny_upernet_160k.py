_base_ = [
    '../_base_/models/upernet.py', '../_base_/datasets/ade20k_bs2.py',
    '../_base_/schedules/ade_160k_adamw.py', '../_base_/default_runtime.py'
]
model = dict(
    backbone=dict(
        type='mmpretrain.ToyNet', arch='tiny', out_indices=(0, 1, 2, 3),
        init_cfg=dict(type='Pretrained', checkpoint='published://toynet_tiny')),
    decode_head=dict(in_channels=[8, 16, 24, 32]),
    auxiliary_head=dict(in_channels=24))
