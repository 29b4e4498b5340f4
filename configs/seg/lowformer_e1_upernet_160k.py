_base_ = './lowformer_b0_upernet_160k.py'

model = dict(
    backbone=dict(
        arch='e1',
        drop_path_rate=0.1,
        init_cfg=dict(checkpoint='published://lowformer_e1')),
    decode_head=dict(in_channels=[40, 80, 160, 320]),
    auxiliary_head=dict(in_channels=160))
