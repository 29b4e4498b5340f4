_base_ = './ecoformer_pvt_b0_30e.py'

model = dict(backbone=dict(arch='b1'), head=dict(in_channels=512))
