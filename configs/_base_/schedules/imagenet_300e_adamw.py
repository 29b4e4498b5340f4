# ImageNet-1K, 300 epochs, AdamW: the recipe SOFT was published with, batch
# 8 GPUs x 128 = 1024, lr = base lr * batch / 1024. A leaf whose base lr or batch
# differs sets both.
train_cfg = dict(by_epoch=True, max_epochs=300, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW',
        lr=1e-3,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05),
    # No decay for biases, norms and other one-dimensional parameters; position
    # embeddings are decayed.
    paramwise_cfg=dict(
        flat_decay_mult=0.0,
        custom_keys=dict(cls_token=dict(decay_mult=0.0))),
    clip_grad=dict(max_norm=1.0))

param_scheduler = [
    # from 1e-6 at lr 1e-3
    dict(
        type='LinearLR',
        start_factor=1e-3,
        by_epoch=True,
        begin=0,
        end=10,
        convert_to_iter_based=True),
    # eta_min is not scaled with the batch
    dict(
        type='CosineAnnealingLR',
        eta_min=5e-5,
        by_epoch=True,
        begin=10,
        end=300)
]

# The averaged weights are the ones evaluated: decay 0.99996, BN statistics included.
custom_hooks = [
    dict(
        type='EMAHook',
        momentum=4e-5,
        update_buffers=True,
        priority='ABOVE_NORMAL')
]

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', interval=1, max_keep_ckpts=3, save_best='auto'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False))
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

# base_batch_size = (8 GPUs) x (128 images per GPU)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
