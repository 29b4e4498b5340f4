_base_ = [
    '../_base_/models/classifier_efficientvit.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e_adamw.py',
    '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(type='LowFormer', arch='e1', drop_path_rate=0.1),
    head=dict(in_channels=320, hidden_dims=(2304, 2560)))

# 8 GPUs x 128 images at the published lr per image, 1e-4 for 100 on each GPU
optim_wrapper = dict(optimizer=dict(lr=1e-4 / 100 * 1024, weight_decay=0.1))
