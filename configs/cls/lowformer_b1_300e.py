_base_ = './lowformer_b0_300e.py'

model = dict(backbone=dict(arch='b1'))

# 8 GPUs x 128 images; published lr per GPU 2.5e-4
train_dataloader = dict(batch_size=128)
optim_wrapper = dict(optimizer=dict(lr=8 * 2.5e-4))
auto_scale_lr = dict(base_batch_size=1024)
