_base_ = './soft_tiny_maskrcnn_1x.py'

model = dict(
    backbone=dict(arch='small', init_cfg=dict(checkpoint='published://soft_small')))
