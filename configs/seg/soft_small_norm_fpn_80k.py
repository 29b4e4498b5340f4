_base_ = './soft_small_fpn_80k.py'

model = dict(
    backbone=dict(
        normalized=True,
        init_cfg=dict(checkpoint='published://soft_small_norm')))
