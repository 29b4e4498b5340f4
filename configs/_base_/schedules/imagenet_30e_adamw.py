# ImageNet-1K, 30 epochs, AdamW: EcoFormer's second training, which starts from a model
# with softmax attention and fits hash functions first. Batch 8 GPUs x 32 = 256,
# lr = 5e-5 * batch / 512. A leaf whose base lr differs sets it.
# The start: --cfg-options load_from=published://<file of the softmax model>, or one's
# own, trained with model.backbone.attention=softmax.
train_cfg = dict(by_epoch=True, max_epochs=30, val_interval=1)
val_cfg = dict()
test_cfg = dict()

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(
        type='AdamW',
        lr=5e-5 * 256 / 512,
        betas=(0.9, 0.999),
        eps=1e-8,
        weight_decay=0.05),
    # No decay for biases, norms and other one-dimensional parameters.
    paramwise_cfg=dict(flat_decay_mult=0.0))

param_scheduler = [
    # from 1e-7 at lr 2.5e-5
    dict(
        type='LinearLR',
        start_factor=4e-3,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True),
    # eta_min is not scaled with the batch
    dict(
        type='CosineAnnealingLR', eta_min=1e-6, by_epoch=True, begin=5, end=30)
]

custom_hooks = [dict(type='HashFittingHook')]

default_hooks = dict(
    timer=dict(type='IterTimerHook'),
    logger=dict(type='LoggerHook', interval=100),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(
        type='CheckpointHook', interval=1, max_keep_ckpts=3, save_best='auto'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    visualization=dict(type='VisualizationHook', enable=False))
log_processor = dict(type='LogProcessor', window_size=50, by_epoch=True)

# base_batch_size = (8 GPUs) x (32 images per GPU)
auto_scale_lr = dict(enable=False, base_batch_size=256)
