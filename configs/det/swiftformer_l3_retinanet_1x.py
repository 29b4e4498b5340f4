_base_ = './swiftformer_xs_retinanet_1x.py'

model = dict(backbone=dict(arch='l3'), neck=dict(in_channels=[128, 320, 512]))
