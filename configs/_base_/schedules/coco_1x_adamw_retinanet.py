# COCO 1x with AdamW, as PVT trains RetinaNet: half the learning rate.
_base_ = './coco_1x_adamw.py'

optim_wrapper = dict(optimizer=dict(lr=1e-4))
