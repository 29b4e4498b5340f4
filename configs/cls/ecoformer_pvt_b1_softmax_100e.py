_base_ = './ecoformer_pvt_b0_softmax_100e.py'

model = dict(backbone=dict(arch='b1'), head=dict(in_channels=512))
