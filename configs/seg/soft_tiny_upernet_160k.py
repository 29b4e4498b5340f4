# The authors of SOFT released no segmentation settings: these are Swin's.
_base_ = [
    '../_base_/models/upernet.py', '../_base_/datasets/ade20k_bs2.py',
    '../_base_/schedules/ade_160k_adamw.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        type='mmpretrain.SOFT',
        arch='tiny',
        out_indices=(0, 1, 2, 3),
        pretrain_size=224,
        init_cfg=dict(type='Pretrained', checkpoint='published://soft_tiny')),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320))
