_base_ = './lowformer_b0_300e.py'

model = dict(
    backbone=dict(arch='b15'),
    head=dict(in_channels=320, hidden_dims=(2304, 2560)),
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.3), dict(type='CutMix', alpha=0.3)]))

train_pipeline = [
    *_base_.crop_and_flip,
    dict(_base_.rand_augment, num_policies=2, magnitude_level=6),
    dict(type='PackInputs')
]

# 8 GPUs x 170 images; published lr per GPU 1.66e-4
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(optimizer=dict(lr=8 * 1.66e-4))

custom_hooks = [
    _base_.ema, _base_.precise_bn, dict(_base_.drop_path, rate=0.1)
]
