_base_ = '../_base_/recipes/ecoformer.py'

model = dict(backbone=dict(arch='b3'), head=dict(in_channels=512))
