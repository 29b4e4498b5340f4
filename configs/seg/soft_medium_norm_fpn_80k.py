_base_ = './soft_medium_fpn_80k.py'

model = dict(
    backbone=dict(
        normalized=True,
        init_cfg=dict(checkpoint='published://soft_medium_norm')))
