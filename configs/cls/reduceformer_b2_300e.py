_base_ = [
    '../_base_/models/classifier_efficientvit.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e_adamw.py',
    '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(type='ReduceFormer', arch='b2', drop_path_rate=0.1),
    head=dict(in_channels=384, hidden_dims=(2304, 2560)))

# 8 GPUs x 128 images, published lr per GPU 4e-4
optim_wrapper = dict(optimizer=dict(lr=8 * 4e-4, weight_decay=0.1))
