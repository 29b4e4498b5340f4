# How SwiftFormer was trained: 8 GPUs x 256 images. The learning rate is the one of the
# released code, not scaled with the batch; the paper says 1e-3. The table is in
# docs/recipes.md.
_base_ = [
    '../models/classifier.py', '../datasets/imagenet_bicubic.py',
    '../schedules/imagenet_300e_adamw.py', '../default_runtime.py'
]

model = dict(
    type='DistilledClassifier',
    backbone=dict(type='SwiftFormer'),
    head=dict(type='DistilledClsHead'),
    # timm's RegNetY-16GF of DeiT, 82.9 % top-1; other teachers fit as well
    teacher=dict(
        type='TimmClassifier',
        model_name='regnety_160',
        num_classes=1000,
        checkpoint='data/teachers/regnety_160.pth'))

train_dataloader = dict(
    batch_size=256,
    sampler=dict(
        _delete_=True, type='RepeatAugSampler', shuffle=True, num_repeats=3))
val_dataloader = dict(batch_size=256)
test_dataloader = val_dataloader

optim_wrapper = dict(
    type='AGCOptimWrapper',
    optimizer=dict(lr=2e-3, weight_decay=0.025),
    clip_grad=dict(clip_factor=0.01))

param_scheduler = [
    dict(
        type='WarmupCosineLR',
        warmup=5,
        warmup_lr_init=1e-6,
        T_max=300,
        eta_min=1e-5,
        by_epoch=True)
]

# Decay 0.99996, BN statistics included; the weights evaluated are those without.
custom_hooks = [
    dict(
        type='EMAHook',
        momentum=4e-5,
        update_buffers=True,
        evaluate_on_ema=False,
        evaluate_on_origin=True,
        priority='ABOVE_NORMAL')
]

# base_batch_size = (8 GPUs) x (256 images per GPU)
auto_scale_lr = dict(base_batch_size=2048)
