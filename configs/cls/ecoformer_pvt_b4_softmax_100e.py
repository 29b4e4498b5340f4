_base_ = './ecoformer_pvt_b0_softmax_100e.py'

model = dict(backbone=dict(arch='b4'), head=dict(in_channels=512))
