_base_ = './soft_tiny_upernet_160k.py'

model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='published://soft_small')))
