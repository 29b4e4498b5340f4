_base_ = './swiftformer_xs_fpn_40k.py'

model = dict(
    backbone=dict(arch='l3', init_cfg=dict(checkpoint='published://swiftformer_l3')),
    neck=dict(in_channels=[64, 128, 320, 512]))
