_base_ = '../_base_/recipes/lowformer.py'

model = dict(
    backbone=dict(arch='e2'),
    head=dict(in_channels=512, hidden_dims=(1536, 1600)),
    train_cfg=dict(augments=[
        dict(type='Mixup', alpha=0.2),
        dict(type='CutMix', alpha=0.2)
    ]))

train_pipeline = [
    *_base_.crop_and_flip,
    dict(_base_.rand_augment, num_policies=2, magnitude_level=5),
    _base_.random_erasing,
    dict(type='PackInputs')
]

# 8 GPUs x 50 images, 4 times accumulated; published lr per GPU 1.0e-4
train_dataloader = dict(batch_size=50, dataset=dict(pipeline=train_pipeline))
optim_wrapper = dict(
    optimizer=dict(lr=8 * 4 * 1.0e-4),
    accumulative_counts=4,
    clip_grad=dict(clip_value=2.0 / 4))
auto_scale_lr = dict(base_batch_size=400)

custom_hooks = [
    _base_.accumulation, _base_.average, _base_.norm_statistics,
    dict(_base_.drop_path, rate=0.1, skip=1), _base_.mesa
]
