_base_ = '../_base_/recipes/lowformer.py'

model = dict(
    backbone=dict(arch='b1'),
    head=dict(in_channels=256, hidden_dims=(1536, 1600)))

# 8 GPUs x 128 images; published lr per GPU 2.5e-4
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=8 * 2.5e-4))
auto_scale_lr = dict(base_batch_size=1024)
