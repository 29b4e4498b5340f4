_base_ = './soft_huge_maskrcnn_1x.py'

model = dict(backbone=dict(normalized=True))
