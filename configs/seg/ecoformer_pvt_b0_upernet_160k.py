# The authors of EcoFormer released no segmentation settings: these are Swin's.
_base_ = [
    '../_base_/models/upernet.py', '../_base_/datasets/ade20k_bs2.py',
    '../_base_/schedules/ade_160k_adamw.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        type='mmpretrain.EcoFormerPVT',
        arch='b0',
        out_indices=(0, 1, 2, 3),
        drop_path_rate=0.1,
        init_cfg=dict(type='Pretrained', checkpoint='published://ecoformer_pvt_b0')),
    decode_head=dict(in_channels=[32, 64, 160, 256]),
    auxiliary_head=dict(in_channels=160))

custom_hooks = [dict(type='HashFittingHook')]
