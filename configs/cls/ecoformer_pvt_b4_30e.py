_base_ = './ecoformer_pvt_b0_30e.py'

model = dict(backbone=dict(arch='b4'), head=dict(in_channels=512))
