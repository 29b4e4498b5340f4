_base_ = './soft_small_upernet_160k.py'

model = dict(
    backbone=dict(
        normalized=True,
        init_cfg=dict(checkpoint='published://soft_small_norm')))
