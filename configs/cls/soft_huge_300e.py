_base_ = '../_base_/recipes/soft.py'

model = dict(
    backbone=dict(arch='huge'), head=dict(in_channels=512))

# 8 GPUs x 32 images, published base lr 2.7e-4 per 1024 images
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=2.7e-4 * 256 / 1024))
auto_scale_lr = dict(base_batch_size=256)
