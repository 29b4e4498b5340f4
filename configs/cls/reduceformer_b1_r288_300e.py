_base_ = './reduceformer_b1_300e.py'

test_pipeline = [
    *_base_.load_test_image,
    dict(_base_.test_pipeline[2], scale=304),
    dict(type='CenterCrop', crop_size=288),
    dict(type='PackInputs')
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

custom_hooks = [
    _base_.ema,
    dict(_base_.precise_bn, resolution=288, test=True),
    *_base_.custom_hooks[2:]
]
