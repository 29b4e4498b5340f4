_base_ = './swiftformer_xs_maskrcnn_1x.py'

model = dict(backbone=dict(arch='l3'), neck=dict(in_channels=[64, 128, 320, 512]))
