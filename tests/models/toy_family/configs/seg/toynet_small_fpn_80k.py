_base_ = './toynet_tiny_fpn_80k.py'
model = dict(
    backbone=dict(
        arch='small', init_cfg=dict(checkpoint='published://toynet_small')),
    neck=dict(in_channels=[8, 16, 32, 64]))
