_base_ = './soft_medium_upernet_160k.py'

model = dict(
    backbone=dict(
        normalized=True,
        init_cfg=dict(checkpoint='published://soft_medium_norm')))
