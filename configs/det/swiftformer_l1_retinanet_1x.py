_base_ = './swiftformer_xs_retinanet_1x.py'

model = dict(
    backbone=dict(arch='l1', init_cfg=dict(checkpoint='published://swiftformer_l1')),
    neck=dict(in_channels=[96, 192, 384]))
