_base_ = '../_base_/recipes/swiftformer.py'

model = dict(
    backbone=dict(arch='xs'),
    head=dict(in_channels=220),
    train_cfg=None)  # published without Mixup and CutMix

# published without RandAugment, so that the color jitter of the arguments is active
train_pipeline = [
    *_base_.load_image,
    dict(interpolation='bicubic', **_base_.random_resized_crop),
    _base_.random_flip,
    dict(type='ColorJitter', brightness=0.4, contrast=0.4, saturation=0.4),
    _base_.random_erasing,
    dict(type='PackInputs')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
