_base_ = './lowformer_b0_upernet_160k.py'

model = dict(
    backbone=dict(
        arch='b2',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='published://lowformer_b2')),
    decode_head=dict(in_channels=[48, 96, 192, 384]),
    auxiliary_head=dict(in_channels=192))
