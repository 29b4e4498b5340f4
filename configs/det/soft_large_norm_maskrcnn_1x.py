_base_ = './soft_large_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        normalized=True,
        init_cfg=dict(checkpoint='published://soft_large_norm')))
