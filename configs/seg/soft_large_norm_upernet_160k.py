_base_ = './soft_large_upernet_160k.py'

model = dict(
    backbone=dict(
        normalized=True,
        init_cfg=dict(checkpoint='published://soft_large_norm')))
