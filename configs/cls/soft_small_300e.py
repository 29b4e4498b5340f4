_base_ = '../_base_/recipes/soft.py'

model = dict(
    backbone=dict(arch='small'), head=dict(in_channels=512))
