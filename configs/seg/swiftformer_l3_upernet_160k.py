_base_ = './swiftformer_xs_upernet_160k.py'

model = dict(
    backbone=dict(arch='l3', init_cfg=dict(checkpoint='published://swiftformer_l3')),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
    auxiliary_head=dict(in_channels=320))
