_base_ = './soft_huge_fpn_80k.py'

model = dict(backbone=dict(normalized=True))
