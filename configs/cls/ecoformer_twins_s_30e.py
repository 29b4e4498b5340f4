_base_ = '../_base_/recipes/ecoformer_twins.py'

model = dict(backbone=dict(arch='s'), head=dict(in_channels=512))
