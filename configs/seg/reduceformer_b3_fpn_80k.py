_base_ = './reduceformer_b1_fpn_80k.py'

model = dict(
    backbone=dict(
        arch='b3',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='published://reduceformer_b3')),
    neck=dict(in_channels=[64, 128, 256, 512]))
