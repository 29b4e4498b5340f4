_base_ = './lowformer_b0_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        arch='b2',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='published://lowformer_b2')),
    neck=dict(in_channels=[48, 96, 192, 384]))
