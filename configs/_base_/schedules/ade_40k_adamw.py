# ADE20K, 40k iterations, AdamW, as SwiftFormer, EfficientFormer and PoolFormer train
# Semantic FPN.
_base_ = './ade_80k_adamw.py'

train_cfg = dict(max_iters=40000, val_interval=4000)
optim_wrapper = dict(optimizer=dict(lr=2e-4))
param_scheduler = [dict(_base_.param_scheduler[0], end=40000)]
default_hooks = dict(checkpoint=dict(interval=4000))
