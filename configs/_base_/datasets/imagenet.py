# ImageNet-1K at 224 with the augmentation of the DeiT line of recipes: random
# resized crop with a random interpolation, flip, RandAugment m9 mstd0.5 inc1 and
# random erasing 0.25 per pixel. Color jitter 0.4 stands in the published arguments
# too, but timm applies it only without an auto-augment policy. Mixup and CutMix
# belong to the model (`train_cfg`).
default_scope = 'mmpretrain'

dataset_type = 'ImageNet'
data_root = 'data/imagenet'

# The pipelines see BGR images, the model's data preprocessor turns them into RGB.
bgr_mean = [103.53, 116.28, 123.675]
bgr_std = [57.375, 57.12, 58.395]

# The steps of the pipeline, which the recipes put together in their own ways.
load_image = [
    # Pillow tells a broken file from a picture: it is skipped in training.
    dict(
        type='LoadImageFromFile',
        imdecode_backend='pillow',
        ignore_empty=True),
    dict(type='CheckBitDepth')
]
# the same pixels in testing, for every kind of file
load_test_image = [
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='CheckBitDepth')
]
random_resized_crop = dict(type='RandomResizedCrop', scale=224, backend='pillow')
random_flip = dict(type='RandomFlip', prob=0.5, direction='horizontal')
rand_augment = dict(
    type='RandAugment',
    policies='timm_increasing',
    num_policies=2,
    total_level=10,
    magnitude_level=9,
    magnitude_std=0.5,
    hparams=dict(
        pad_val=[round(x) for x in bgr_mean], interpolation='bicubic'))
random_erasing = dict(
    type='RandomErasing',
    erase_prob=0.25,
    mode='rand',
    min_area_ratio=0.02,
    max_area_ratio=1 / 3,
    fill_color=bgr_mean,
    fill_std=bgr_std)

train_pipeline = [
    *load_image,
    dict(
        type='RandomChoice',
        transforms=[[dict(interpolation=interpolation, **random_resized_crop)]
                    for interpolation in ('bilinear', 'bicubic')]),
    random_flip, rand_augment, random_erasing,
    dict(type='PackInputs')
]
test_pipeline = [
    *load_test_image,
    # centre crop of 0.9: 224 / 0.9 = 248
    dict(
        type='ResizeEdge',
        scale=248,
        edge='short',
        backend='pillow',
        interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=224),
    dict(type='PackInputs')
]

train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    drop_last=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='train',
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    pin_memory=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='val',
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator

# TensorBoard: append dict(type='TensorboardVisBackend') to the list.
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='UniversalVisualizer', vis_backends=vis_backends, name='visualizer')
