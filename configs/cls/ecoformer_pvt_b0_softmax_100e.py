# The training before the one with hash attention: 100 epochs with softmax attention
# everywhere, from a classifier with spatial reduction, such as
# --cfg-options load_from=published://timm/pvt_v2_b0.in1k.
_base_ = './ecoformer_pvt_b0_30e.py'

model = dict(backbone=dict(attention='softmax'))

train_cfg = dict(max_epochs=100)
param_scheduler = [dict(_base_.param_scheduler[0], T_max=100)]
custom_hooks = []
