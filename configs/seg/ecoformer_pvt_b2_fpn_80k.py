_base_ = './ecoformer_pvt_b0_fpn_80k.py'

model = dict(
    backbone=dict(arch='b2', init_cfg=dict(checkpoint='published://ecoformer_pvt_b2')),
    neck=dict(in_channels=[64, 128, 320, 512]))
