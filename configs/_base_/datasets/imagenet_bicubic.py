# ImageNet-1K at 224: imagenet.py with bicubic crops, and evaluated at a centre crop of
# 0.875: 224 / 256.
_base_ = './imagenet.py'

train_pipeline = [
    *_base_.load_image,
    dict(interpolation='bicubic', **_base_.random_resized_crop),
    _base_.random_flip, _base_.rand_augment, _base_.random_erasing,
    dict(type='PackInputs')
]
test_pipeline = [
    *_base_.load_test_image,
    dict(_base_.test_pipeline[2], scale=256),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs')
]

train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
