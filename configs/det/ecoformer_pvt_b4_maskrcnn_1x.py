_base_ = './ecoformer_pvt_b0_maskrcnn_1x.py'

model = dict(
    backbone=dict(arch='b4', init_cfg=dict(checkpoint='published://ecoformer_pvt_b4')),
    neck=dict(in_channels=[64, 128, 320, 512]))
