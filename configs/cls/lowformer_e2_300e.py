# augmentation and accumulation of b3
_base_ = './lowformer_b3_300e.py'

model = dict(backbone=dict(arch='e2'))

# 8 GPUs x 50 images, 4 times accumulated; published lr per GPU 1.0e-4
train_dataloader = dict(batch_size=50)
optim_wrapper = dict(optimizer=dict(lr=8 * 4 * 1.0e-4))
auto_scale_lr = dict(base_batch_size=400)

custom_hooks = [
    _base_.accumulation, _base_.ema, _base_.precise_bn,
    dict(_base_.drop_path, rate=0.1, skip=1), _base_.mesa
]
