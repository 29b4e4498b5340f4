_base_ = './lowformer_b0_upernet_160k.py'

model = dict(backbone=dict(arch='b1'))
