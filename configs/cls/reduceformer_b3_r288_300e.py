# The same training, evaluated at 288. Weights from a training that was evaluated at
# another resolution can be tested too: batch norms are re-estimated on training data.
_base_ = './reduceformer_b3_300e.py'

test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(
        type='ResizeEdge',
        scale=288,
        edge='short',
        backend='pillow',
        interpolation='bicubic'),
    dict(type='CenterCrop', crop_size=288),
    dict(type='PackInputs')
]
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader

custom_hooks = [
    _base_.average,
    dict(_base_.norm_statistics, resolution=288, test=True),
    dict(_base_.drop_path, rate=0.1), _base_.mesa
]
