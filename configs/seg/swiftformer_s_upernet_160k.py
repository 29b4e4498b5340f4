_base_ = './swiftformer_xs_upernet_160k.py'

model = dict(
    backbone=dict(arch='s', init_cfg=dict(checkpoint='published://swiftformer_s')),
    decode_head=dict(in_channels=[48, 64, 168, 224]),
    auxiliary_head=dict(in_channels=168))
