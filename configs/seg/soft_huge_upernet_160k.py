_base_ = './soft_tiny_upernet_160k.py'

model = dict(
    backbone=dict(arch='huge', init_cfg=dict(checkpoint='published://soft_huge')),
    decode_head=dict(in_channels=[64, 128, 352, 512]),
    auxiliary_head=dict(in_channels=352))
