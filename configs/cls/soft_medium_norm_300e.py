_base_ = './soft_medium_300e.py'

model = dict(backbone=dict(normalized=True))

# published base lr 4e-4 per 1024 images
optim_wrapper = dict(optimizer=dict(lr=4e-4 * 256 / 1024))
