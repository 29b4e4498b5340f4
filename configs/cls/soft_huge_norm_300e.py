_base_ = './soft_huge_300e.py'

model = dict(backbone=dict(normalized=True))
