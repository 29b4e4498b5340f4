# augmentation, MESA and drop path of b3, but for stronger mixing
_base_ = './lowformer_b3_300e.py'

model = dict(
    backbone=dict(arch='e3'),
    train_cfg=dict(
        augments=[dict(type='Mixup', alpha=0.3), dict(type='CutMix', alpha=0.3)]))

# 8 GPUs x 50 images, 8 times accumulated; published lr per GPU 0.625e-4
train_dataloader = dict(batch_size=50)
optim_wrapper = dict(
    optimizer=dict(lr=8 * 8 * 0.625e-4),
    accumulative_counts=8,
    clip_grad=dict(clip_value=2.0 / 8))
auto_scale_lr = dict(base_batch_size=400)
