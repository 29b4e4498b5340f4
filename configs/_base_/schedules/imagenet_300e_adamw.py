# ImageNet-1K, 300 epochs with AdamW. Batch, learning rate and the like are in the
# recipes of the families (_base_/recipes).
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
    # no decay for biases, norms and other one-dimensional parameters
    paramwise_cfg=dict(flat_decay_mult=0.0))

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook',
        interval=1,
        max_keep_ckpts=3,
        save_best='accuracy/top1'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False))
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

# base_batch_size = (8 GPUs) x (128 images per GPU)
auto_scale_lr = dict(enable=False, base_batch_size=1024)
