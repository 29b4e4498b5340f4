_base_ = [
    '../_base_/models/classifier_efficientvit.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e_adamw.py',
    '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(type='LowFormer', arch='b1', drop_path_rate=0.05),
    head=dict(in_channels=256, hidden_dims=(1536, 1600)))

# 8 GPUs x 128 images at the published lr per image, 2.5e-4 for 128 on each GPU
optim_wrapper = dict(optimizer=dict(lr=2.5e-4 / 128 * 1024, weight_decay=0.1))
