# The training before the one with hash attention: 100 epochs with softmax attention
# everywhere, from a classifier with spatial reduction, such as
# --cfg-options load_from=published://timm/twins_svt_small.in1k.
_base_ = './ecoformer_twins_s_30e.py'

model = dict(backbone=dict(attention='softmax'))

train_cfg = dict(max_epochs=100)
optim_wrapper = dict(optimizer=dict(lr=5e-5 * 256 / 512))
param_scheduler = [dict(_base_.param_scheduler[0], warmup_lr_init=1e-7, T_max=100)]
custom_hooks = []
