_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_30e_adamw.py',
    '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(type='EcoFormerTwins', arch='s'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(in_channels=512))

train_dataloader = dict(batch_size=32)

# published base lr 2.5e-4 per 512 images; no decay of the position encodings
optim_wrapper = dict(
    optimizer=dict(lr=2.5e-4 * 256 / 512),
    paramwise_cfg=dict(custom_keys=dict(pos_conv=dict(decay_mult=0.0))),
    clip_grad=dict(max_norm=5.0))
