_base_ = './toynet_tiny_upernet_160k.py'
model = dict(
    backbone=dict(
        arch='small', init_cfg=dict(checkpoint='published://toynet_small')),
    decode_head=dict(in_channels=[8, 16, 32, 64]),
    auxiliary_head=dict(in_channels=32))
