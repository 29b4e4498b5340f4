_base_ = './soft_small_maskrcnn_1x.py'

model = dict(backbone=dict(normalized=True))
