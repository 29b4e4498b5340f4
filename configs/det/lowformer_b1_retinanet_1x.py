_base_ = './lowformer_b0_retinanet_1x.py'

model = dict(
    backbone=dict(arch='b1', init_cfg=dict(checkpoint='published://lowformer_b1')))
