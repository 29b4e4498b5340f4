# ADE20K, 160k iterations, AdamW, as Swin trains UperNet. None of the authors of the
# five families released such settings; these stand in for them.
_base_ = './ade_80k_adamw.py'

train_cfg = dict(max_iters=160000, val_interval=16000)
optim_wrapper = dict(
    optimizer=dict(lr=6e-5, betas=(0.9, 0.999), weight_decay=0.01),
    # no decay for norms and position embeddings
    paramwise_cfg=dict(
        norm_decay_mult=0.0, custom_keys=dict(pos_embed=dict(decay_mult=0.0))))
param_scheduler = [
    dict(type='LinearLR', start_factor=1e-6, by_epoch=False, begin=0, end=1500),
    dict(
        type='PolyLR',
        eta_min=0.0,
        power=1.0,
        begin=1500,
        end=160000,
        by_epoch=False)
]
default_hooks = dict(checkpoint=dict(interval=16000))

# base_batch_size = (8 GPUs) x (2 images per GPU)
auto_scale_lr = dict(base_batch_size=16)
