# ImageNet-1K, 300 epochs, AdamW, batch 8 GPUs x 256 = 2048: learning rate, decay and
# schedule of SwiftFormer. The learning rate is the one of the released code; the
# paper says 1e-3.
_base_ = './imagenet_300e_adamw.py'

optim_wrapper = dict(optimizer=dict(lr=2e-3, weight_decay=0.025))

param_scheduler = [
    # from 1e-6
    dict(
        type='LinearLR',
        start_factor=5e-4,
        by_epoch=True,
        begin=0,
        end=5,
        convert_to_iter_based=True),
    dict(
        type='CosineAnnealingLR',
        eta_min=1e-5,
        by_epoch=True,
        begin=5,
        end=300)
]

# base_batch_size = (8 GPUs) x (256 images per GPU)
auto_scale_lr = dict(base_batch_size=2048)
