_base_ = './soft_tiny_upernet_160k.py'

model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint='published://soft_large')))
