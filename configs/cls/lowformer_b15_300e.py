_base_ = [
    '../_base_/models/classifier_efficientvit.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e_adamw.py',
    '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(type='LowFormer', arch='b15', drop_path_rate=0.1),
    head=dict(in_channels=320, hidden_dims=(2304, 2560)))

# 8 GPUs x 128 images at the published lr per image, 1.66e-4 for 170 on each GPU
optim_wrapper = dict(optimizer=dict(lr=1.66e-4 / 170 * 1024, weight_decay=0.1))
