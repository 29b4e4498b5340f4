_base_ = './soft_tiny_fpn_80k.py'

model = dict(
    backbone=dict(arch='huge', init_cfg=dict(checkpoint='published://soft_huge')),
    neck=dict(in_channels=[64, 128, 352, 512]))
