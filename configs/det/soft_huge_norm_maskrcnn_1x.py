_base_ = './soft_huge_maskrcnn_1x.py'

model = dict(
    backbone=dict(
        normalized=True,
        init_cfg=dict(checkpoint='published://soft_huge_norm')))
