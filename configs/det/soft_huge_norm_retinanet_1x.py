_base_ = './soft_huge_retinanet_1x.py'

model = dict(backbone=dict(normalized=True))
