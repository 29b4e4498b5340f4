_base_ = './lowformer_b0_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        arch='b3',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='published://lowformer_b3')),
    neck=dict(in_channels=[64, 128, 256, 512]))
