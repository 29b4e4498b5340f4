_base_ = '../_base_/recipes/reduceformer.py'

model = dict(
    backbone=dict(arch='b1'),
    head=dict(in_channels=256, hidden_dims=(1536, 1600)))

optim_wrapper = dict(optimizer=dict(lr=8 * 2.5e-4))
