# ADE20K, 512x512, 8 GPUs x 2 images (UperNet).
_base_ = './ade20k.py'

train_dataloader = dict(batch_size=2)
