_base_ = './soft_small_retinanet_1x.py'

model = dict(backbone=dict(normalized=True))
