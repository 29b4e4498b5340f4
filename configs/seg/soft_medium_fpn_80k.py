_base_ = './soft_tiny_fpn_80k.py'

model = dict(
    backbone=dict(arch='medium', init_cfg=dict(checkpoint='published://soft_medium')),
    neck=dict(in_channels=[64, 128, 288, 512]))
