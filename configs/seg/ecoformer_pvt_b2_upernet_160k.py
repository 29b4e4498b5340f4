_base_ = './ecoformer_pvt_b0_upernet_160k.py'

model = dict(
    backbone=dict(arch='b2', init_cfg=dict(checkpoint='published://ecoformer_pvt_b2')),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320))
