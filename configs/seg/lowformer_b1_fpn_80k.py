_base_ = './lowformer_b0_fpn_80k.py'

model = dict(
    backbone=dict(arch='b1', init_cfg=dict(checkpoint='published://lowformer_b1')))
