# How ReduceFormer was trained: 8 GPUs x 128 images, at two more resolutions than
# LowFormer. The learning rate is published per GPU.
_base_ = './efficientvit.py'

model = dict(backbone=dict(type='ReduceFormer'))

train_dataloader = dict(
    batch_sampler=dict(resolutions=[128, 160, 192, 224, 256, 288]))
