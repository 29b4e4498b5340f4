_base_ = './soft_large_fpn_80k.py'

model = dict(backbone=dict(normalized=True))
