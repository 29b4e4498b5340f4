_base_ = '../_base_/recipes/soft.py'

model = dict(backbone=dict(arch='tiny'), head=dict(in_channels=512))
