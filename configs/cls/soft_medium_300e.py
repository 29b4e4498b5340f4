_base_ = './soft_tiny_300e.py'

model = dict(backbone=dict(arch='medium'))

# 8 GPUs x 32 images, published base lr 3.5e-4 per 1024 images
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(optimizer=dict(lr=3.5e-4 * 256 / 1024))
auto_scale_lr = dict(base_batch_size=256)
