_base_ = './lowformer_b0_upernet_160k.py'

model = dict(
    backbone=dict(arch='b1', init_cfg=dict(checkpoint='published://lowformer_b1')))
