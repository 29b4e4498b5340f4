_base_ = './lowformer_b0_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        arch='b15',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='published://lowformer_b15')),
    neck=dict(in_channels=[40, 80, 160, 320]))
