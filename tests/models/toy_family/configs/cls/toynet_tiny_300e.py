_base_ = '../_base_/recipes/soft.py'
model = dict(
    backbone=dict(_delete_=True, type='ToyNet', arch='tiny'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(in_channels=32))
