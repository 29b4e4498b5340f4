_base_ = './soft_large_fpn_80k.py'

model = dict(
    backbone=dict(
        normalized=True,
        init_cfg=dict(checkpoint='published://soft_large_norm')))
