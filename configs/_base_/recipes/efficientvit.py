# EfficientViT's trainer, with which LowFormer and ReduceFormer were trained: 20 epochs
# of warm-up and 300 more, schedule by iteration, one resolution per iteration. A leaf
# has the strength of the augmentations and of stochastic depth. The table is in
# docs/recipes.md.
_base_ = [
    '../models/classifier_efficientvit.py', '../datasets/imagenet.py',
    '../schedules/imagenet_300e_adamw.py', '../default_runtime.py'
]

model = dict(
    type='MESAClassifier',
    head=dict(
        loss=dict(_delete_=True, type='SmoothedBCELoss', label_smooth_val=0.1)),
    train_cfg=dict(augments=[
        dict(type='Mixup', alpha=0.1),
        dict(type='CutMix', alpha=0.1)
    ]))

crop_and_flip = [
    dict(type='BatchResolution'), *_base_.load_image,
    dict(
        type='BatchResizedCrop',
        scale=224,
        interpolations=[
            'nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos'
        ]),
    _base_.random_flip
]
rand_augment = dict(num_policies=1, magnitude_level=3, magnitude_std=1.0)
# after the normalisation in the original: zero there is the mean colour here
random_erasing = dict(erase_prob=0.2, mode='const')
train_pipeline = [
    *crop_and_flip,
    dict(_base_.rand_augment, **rand_augment),
    dict(type='PackInputs')
]
test_pipeline = [
    *_base_.load_test_image,
    # centre crop of 0.95: 224 / 0.95 = 236
    dict(_base_.test_pipeline[2], scale=236),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs')
]

train_dataloader = dict(
    _delete_=True,
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    batch_sampler=dict(
        type='ResolutionBatchSampler',
        resolutions=[128, 160, 192, 224],
        drop_last=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type=_base_.dataset_type,
        data_root=_base_.data_root,
        split='train',
        pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=320)
optim_wrapper = dict(
    optimizer=dict(weight_decay=0.1),
    clip_grad=dict(type='value', clip_value=2.0))

param_scheduler = [
    dict(
        type='WarmupCosineLR',
        warmup=20,
        warmup_lr_init=0.,
        cosine_begin=20,
        T_max=300,
        eta_min=0.,
        by_epoch=True,
        convert_to_iter_based=True)
]

# What is evaluated and saved: averaged weights, with batch norms re-estimated at the
# resolution of the evaluation.
ema = dict(
    type='EMAHook',
    ema_type='WarmupEMA',
    momentum=2e-4,
    warmup=2000,
    priority='ABOVE_NORMAL')
precise_bn = dict(
    type='PreciseBNEvalHook',
    num_samples=16000,
    batch_size=100,
    resolution=224)
drop_path = dict(type='DropPathProgressHook', rate=0.05, warmup=20 / 320)
mesa = dict(type='MESAHook', weight=2.0, begin=0.25, warmup=20 / 320)
custom_hooks = [ema, precise_bn, drop_path]
