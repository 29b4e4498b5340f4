_base_ = './ecoformer_pvt_b0_upernet_160k.py'

model = dict(
    backbone=dict(
        type='mmpretrain.EcoFormerTwins',
        arch='s',
        drop_path_rate=0.2,
        init_cfg=dict(checkpoint='published://ecoformer_twins_s')),
    decode_head=dict(in_channels=[64, 128, 256, 512]),
    auxiliary_head=dict(in_channels=256))
