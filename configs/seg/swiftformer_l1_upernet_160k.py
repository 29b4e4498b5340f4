_base_ = './swiftformer_xs_upernet_160k.py'

model = dict(
    backbone=dict(arch='l1', init_cfg=dict(checkpoint='published://swiftformer_l1')),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192))
