# The settings of the paper, of which no code was released.
_base_ = [
    '../_base_/models/mask-rcnn_fpn.py', '../_base_/datasets/coco_instance.py',
    '../_base_/schedules/coco_1x_adamw.py', '../_base_/default_runtime.py'
]

model = dict(
    backbone=dict(
        type='mmpretrain.SwiftFormer',
        arch='xs',
        out_indices=(0, 1, 2, 3),
        output_norm=True,
        init_cfg=dict(type='Pretrained', checkpoint='published://swiftformer_xs')),
    neck=dict(in_channels=[48, 56, 112, 220]))

# 8 GPUs x 4 images, as published
train_dataloader = dict(batch_size=4)
auto_scale_lr = dict(base_batch_size=32)
