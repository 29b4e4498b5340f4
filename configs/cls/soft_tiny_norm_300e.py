_base_ = './soft_tiny_300e.py'

model = dict(backbone=dict(normalized=True))
