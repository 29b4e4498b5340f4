_base_ = './lowformer_b0_upernet_160k.py'

model = dict(
    backbone=dict(
        arch='b3',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='published://lowformer_b3')),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
