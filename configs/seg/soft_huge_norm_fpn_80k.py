_base_ = './soft_huge_fpn_80k.py'

model = dict(
    backbone=dict(
        normalized=True,
        init_cfg=dict(checkpoint='published://soft_huge_norm')))
