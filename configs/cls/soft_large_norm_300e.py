_base_ = './soft_large_300e.py'

model = dict(backbone=dict(normalized=True))
