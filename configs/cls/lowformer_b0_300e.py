_base_ = '../_base_/recipes/lowformer.py'

model = dict(
    backbone=dict(arch='b0'),
    head=dict(in_channels=256, hidden_dims=(1536, 1600)))

# 8 GPUs x 170 images; published lr per GPU 3.32e-4
train_dataloader = dict(batch_size=170)
optim_wrapper = dict(optimizer=dict(lr=8 * 3.32e-4))
auto_scale_lr = dict(base_batch_size=1360)
