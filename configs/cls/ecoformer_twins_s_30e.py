# EcoFormer on Twins-SVT: no repeated augmentation, another learning rate, and gradients
# clipped.
_base_ = '../_base_/recipes/ecoformer.py'

model = dict(
    backbone=dict(type='EcoFormerTwins', arch='s'), head=dict(in_channels=512))

train_dataloader = dict(
    sampler=dict(_delete_=True, type='DefaultSampler', shuffle=True))

optim_wrapper = dict(
    optimizer=dict(lr=2.5e-4 * 256 / 512),
    # no decay of the position encodings
    paramwise_cfg=dict(custom_keys=dict(pos_conv=dict(decay_mult=0.0))),
    clip_grad=dict(max_norm=5.0))
param_scheduler = [dict(_base_.param_scheduler[0], warmup_lr_init=5e-7)]
