_base_ = './lowformer_b0_retinanet_1x.py'

model = dict(
    backbone=dict(
        arch='e1',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='published://lowformer_e1')),
    neck=dict(in_channels=[40, 80, 160, 320]))
