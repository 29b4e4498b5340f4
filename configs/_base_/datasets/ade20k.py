# ADE20K, 150 classes, 512x512, 8 GPUs x 4 images (Semantic FPN).
default_scope = 'mmseg'

dataset_type = 'ADE20KDataset'
data_root = 'data/ade/ADEChallengeData2016'
crop_size = (512, 512)

train_pipeline = [
    # Pillow tells a broken file from a picture: it is skipped in training.
    dict(
        type='LoadImageFromFile',
        imdecode_backend='pillow',
        ignore_empty=True),
    dict(type='CheckBitDepth'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomResize',
        scale=(2048, 512),
        ratio_range=(0.5, 2.0),
        keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackSegInputs')
]
test_pipeline = [
    # the same pixels as in training, for every kind of file
    dict(type='LoadImageFromFile', imdecode_backend='pillow'),
    dict(type='CheckBitDepth'),
    dict(type='Resize', scale=(2048, 512), keep_ratio=True),
    # Whole stages at stride 32, as in the published Semantic FPN settings of
    # PoolFormer and its successors. UperNet is tested the same way.
    dict(type='ResizeToMultiple', size_divisor=32),
    # after the resizing: the ground truth is compared at the original size
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs')
]

# Test-time augmentation at MMSegmentation's ratios, of the scale above.
tta_model = dict(type='SegTTAModel')
tta_pipeline = [
    *test_pipeline[:2],
    dict(
        type='TestTimeAug',
        transforms=[
            [
                dict(type='Resize', scale=scale, keep_ratio=True)
                for scale in [(1024, 256), (1536, 384), (2048, 512), (2560, 640),
                              (3072, 768), (3584, 896)]
            ],
            [dict(type='ResizeToMultiple', size_divisor=32)],
            [dict(type='RandomFlip', prob=prob) for prob in (0., 1.)],
            [dict(type='LoadAnnotations')],
            [dict(type='PackSegInputs')],
        ])
]

train_dataloader = dict(
    batch_size=4,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='InfiniteSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(
            img_path='images/training', seg_map_path='annotations/training'),
        pipeline=train_pipeline))
val_dataloader = dict(
    batch_size=1,
    num_workers=4,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(
            img_path='images/validation',
            seg_map_path='annotations/validation'),
        pipeline=test_pipeline))
test_dataloader = val_dataloader

val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_evaluator = val_evaluator

# TensorBoard: append dict(type='TensorboardVisBackend') to the list.
vis_backends = [dict(type='LocalVisBackend')]
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=vis_backends, name='visualizer')
