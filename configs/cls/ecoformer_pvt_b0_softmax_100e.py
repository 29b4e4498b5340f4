_base_ = '../_base_/recipes/ecoformer_softmax.py'

model = dict(backbone=dict(arch='b0'), head=dict(in_channels=256))
