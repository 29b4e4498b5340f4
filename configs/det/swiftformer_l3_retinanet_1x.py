_base_ = './swiftformer_xs_retinanet_1x.py'

model = dict(
    backbone=dict(arch='l3', init_cfg=dict(checkpoint='published://swiftformer_l3')),
    neck=dict(in_channels=[128, 320, 512]))
