_base_ = './soft_small_300e.py'

model = dict(backbone=dict(normalized=True))
