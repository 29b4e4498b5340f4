_base_ = [
    '../_base_/models/classifier.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_300e_adamw.py',
    '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        type='SOFT', arch='small', normalized=True, out_type='cls_token'),
    head=dict(in_channels=512))
