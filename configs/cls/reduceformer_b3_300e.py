# augmentation and learning rate of b2
_base_ = './reduceformer_b2_300e.py'

model = dict(backbone=dict(arch='b3'), head=dict(in_channels=512))

custom_hooks = [
    _base_.ema, _base_.precise_bn,
    dict(_base_.drop_path, rate=0.1), _base_.mesa
]
