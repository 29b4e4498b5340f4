# augmentation and drop path of b15
_base_ = './lowformer_b15_300e.py'

model = dict(backbone=dict(arch='e1'))

# 8 GPUs x 100 images, 2 times accumulated; published lr per GPU 1.0e-4
train_dataloader = dict(batch_size=100)
optim_wrapper = dict(
    optimizer=dict(lr=8 * 2 * 1.0e-4),
    accumulative_counts=2,
    clip_grad=dict(clip_value=2.0 / 2))
auto_scale_lr = dict(base_batch_size=800)

custom_hooks = [_base_.accumulation, *_base_.custom_hooks]
