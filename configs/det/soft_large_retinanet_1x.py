_base_ = './soft_tiny_retinanet_1x.py'

model = dict(
    backbone=dict(arch='large', init_cfg=dict(checkpoint='published://soft_large')))
