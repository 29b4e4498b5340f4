_base_ = './soft_tiny_upernet_160k.py'

model = dict(
    backbone=dict(arch='medium', init_cfg=dict(checkpoint='published://soft_medium')),
    decode_head=dict(in_channels=[64, 128, 288, 512]),
    auxiliary_head=dict(in_channels=288))
