_base_ = '../_base_/recipes/swiftformer.py'

model = dict(backbone=dict(arch='l1'), head=dict(in_channels=384))
