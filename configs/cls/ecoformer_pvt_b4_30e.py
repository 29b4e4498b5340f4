_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_30e_adamw.py',
    '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(type='EcoFormerPVT', arch='b4'),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(in_channels=512))

train_dataloader = dict(batch_size=32)
