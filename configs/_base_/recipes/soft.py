# How SOFT was trained: 8 GPUs x 128 images, lr = base lr * batch / 1024. A leaf whose
# base lr or batch differs sets both. The table is in docs/recipes.md.
_base_ = [
    '../models/classifier.py', '../datasets/imagenet.py',
    '../schedules/imagenet_300e_adamw.py', '../default_runtime.py'
]

model = dict(backbone=dict(type='SOFT', out_type='cls_token'))

optim_wrapper = dict(
    # position embeddings are decayed
    paramwise_cfg=dict(custom_keys=dict(cls_token=dict(decay_mult=0.0))),
    clip_grad=dict(max_norm=1.0))

# eta_min is not scaled with the batch
param_scheduler = [
    dict(
        type='WarmupCosineLR',
        warmup=10,
        warmup_lr_init=1e-6,
        T_max=300,
        eta_min=5e-5,
        by_epoch=True)
]

# The averaged weights are the ones evaluated: decay 0.99996, BN statistics included.
custom_hooks = [
    dict(
        type='EMAHook',
        momentum=4e-5,
        update_buffers=True,
        priority='ABOVE_NORMAL')
]
