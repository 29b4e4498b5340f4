_base_ = './ecoformer_pvt_b0_retinanet_1x.py'

model = dict(
    backbone=dict(
        type='mmpretrain.EcoFormerTwins',
        arch='s',
        out_indices=(1, 2, 3),
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='published://ecoformer_twins_s')),
    neck=dict(in_channels=[128, 256, 512], start_level=0))
