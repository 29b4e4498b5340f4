# How EcoFormer's hash attention was trained, on PVTv2: 30 epochs from a model with
# softmax attention, hash functions fitted first; 8 GPUs x 32 images, lr 5e-5 per 512
# images. The table is in docs/recipes.md.
# The start: --cfg-options load_from=published://<file of the softmax model>, or one's
# own, trained with the configs *_softmax_100e.py. Published in mixed precision: --amp.
_base_ = [
    '../models/classifier.py', '../datasets/imagenet_bicubic.py',
    '../schedules/imagenet_300e_adamw.py', '../default_runtime.py'
]

model = dict(
    # stochastic depth is 0: the published trainings ran in evaluation mode
    backbone=dict(type='EcoFormerPVT'),
    neck=dict(type='GlobalAveragePooling'))

train_dataloader = dict(
    batch_size=32,
    sampler=dict(
        _delete_=True, type='RepeatAugSampler', shuffle=True, num_repeats=3))

train_cfg = dict(max_epochs=30)
optim_wrapper = dict(optimizer=dict(lr=5e-5 * 256 / 512))

# eta_min is not scaled with the batch
param_scheduler = [
    dict(
        type='WarmupCosineLR',
        warmup=5,
        warmup_lr_init=1e-7,
        T_max=30,
        eta_min=1e-6,
        by_epoch=True)
]

custom_hooks = [dict(type='HashFittingHook')]

# base_batch_size = (8 GPUs) x (32 images per GPU)
auto_scale_lr = dict(base_batch_size=256)
