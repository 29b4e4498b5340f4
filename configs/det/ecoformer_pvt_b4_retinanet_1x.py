_base_ = './ecoformer_pvt_b0_retinanet_1x.py'

model = dict(backbone=dict(arch='b4'), neck=dict(in_channels=[64, 128, 320, 512]))
