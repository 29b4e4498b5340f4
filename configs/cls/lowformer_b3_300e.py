# augmentation, MESA and drop path of b2
_base_ = './lowformer_b2_300e.py'

model = dict(
    backbone=dict(arch='b3'),
    head=dict(in_channels=512, hidden_dims=(1536, 1600)))

# 8 GPUs x 75 images, 4 times accumulated; published lr per GPU 0.94e-4
train_dataloader = dict(batch_size=75)
optim_wrapper = dict(
    optimizer=dict(lr=8 * 4 * 0.94e-4),
    accumulative_counts=4,
    clip_grad=dict(clip_value=2.0 / 4))
auto_scale_lr = dict(base_batch_size=600)

custom_hooks = [_base_.accumulation, *_base_.custom_hooks]
