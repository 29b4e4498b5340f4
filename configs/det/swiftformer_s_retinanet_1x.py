_base_ = './swiftformer_xs_retinanet_1x.py'

model = dict(backbone=dict(arch='s'), neck=dict(in_channels=[64, 168, 224]))
