_base_ = '../_base_/recipes/swiftformer.py'

model = dict(backbone=dict(arch='l3'), head=dict(in_channels=512))
