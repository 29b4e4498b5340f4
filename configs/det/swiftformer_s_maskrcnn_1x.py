_base_ = './swiftformer_xs_maskrcnn_1x.py'

model = dict(
    backbone=dict(arch='s', init_cfg=dict(checkpoint='published://swiftformer_s')),
    neck=dict(in_channels=[48, 64, 168, 224]))
