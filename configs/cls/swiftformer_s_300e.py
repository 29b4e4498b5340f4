_base_ = '../_base_/recipes/swiftformer.py'

model = dict(
    backbone=dict(arch='s'),
    head=dict(in_channels=224),
    train_cfg=None)  # published without Mixup and CutMix
