_base_ = './soft_huge_upernet_160k.py'

model = dict(backbone=dict(normalized=True))
