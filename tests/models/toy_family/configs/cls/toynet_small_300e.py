_base_ = './toynet_tiny_300e.py'
model = dict(backbone=dict(arch='small'), head=dict(in_channels=64))
