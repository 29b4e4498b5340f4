_base_ = './reduceformer_b1_300e.py'

model = dict(
    backbone=dict(arch='b2'),
    head=dict(in_channels=384, hidden_dims=(2304, 2560)),
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.2), dict(type='CutMix', alpha=0.2)]))

train_pipeline = [
    *_base_.crop_and_flip,
    dict(_base_.rand_augment, num_policies=2, magnitude_level=5),
    _base_.random_erasing,
    dict(type='PackInputs')
]
test_pipeline = [
    *_base_.load_test_image,
    dict(_base_.test_pipeline[2], scale=224),  # the whole short side
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs')
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=8 * 4.0e-4))

custom_hooks = [
    _base_.ema, _base_.precise_bn,
    dict(_base_.drop_path, rate=0.1, skip=1)
]
