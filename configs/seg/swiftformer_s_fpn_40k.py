_base_ = './swiftformer_xs_fpn_40k.py'

model = dict(
    backbone=dict(arch='s', init_cfg=dict(checkpoint='published://swiftformer_s')),
    neck=dict(in_channels=[48, 64, 168, 224]))
