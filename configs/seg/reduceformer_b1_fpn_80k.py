# The authors of ReduceFormer released no segmentation settings: these are PVT's.
_base_ = [
    '../_base_/models/fpn.py', '../_base_/datasets/ade20k.py',
    '../_base_/schedules/ade_80k_adamw.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        type='mmpretrain.ReduceFormer',
        arch='b1',
        out_indices=(0, 1, 2, 3),
        pretrain_size=224,
        drop_path_rate=0.05,
        init_cfg=dict(type='Pretrained', checkpoint='published://reduceformer_b1')),
    neck=dict(in_channels=[32, 64, 128, 256]))

# Few images per GPU: batch statistics over all GPUs
sync_bn = 'torch'
