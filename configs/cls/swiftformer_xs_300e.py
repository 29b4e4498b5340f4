_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet_bs256_crop875.py',
    '../_base_/schedules/imagenet_300e_adamw_swiftformer.py',
    '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(type='SwiftFormer', arch='xs'),
    head=dict(type='DistilledClsHead', in_channels=220),
    train_cfg=None)  # published without Mixup and CutMix
