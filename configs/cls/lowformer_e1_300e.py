_base_ = '../_base_/recipes/lowformer.py'

model = dict(
    backbone=dict(arch='e1'),
    head=dict(in_channels=320, hidden_dims=(2304, 2560)),
    train_cfg=dict(augments=[
        dict(type='Mixup', alpha=0.3),
        dict(type='CutMix', alpha=0.3)
    ]))

train_pipeline = [
    *_base_.crop_and_flip,
    dict(_base_.rand_augment, num_policies=2, magnitude_level=6),
    dict(type='PackInputs')
]

# 8 GPUs x 100 images, 2 times accumulated; published lr per GPU 1.0e-4
train_dataloader = dict(batch_size=100, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(
    optimizer=dict(lr=8 * 2 * 1.0e-4),
    accumulative_counts=2,
    clip_grad=dict(clip_value=2.0 / 2))
auto_scale_lr = dict(base_batch_size=800)

custom_hooks = [
    _base_.accumulation, _base_.average, _base_.norm_statistics,
    dict(_base_.drop_path, rate=0.1)
]
