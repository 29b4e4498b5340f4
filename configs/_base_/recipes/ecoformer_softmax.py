# The training before the one with hash attention, on PVTv2: 100 epochs with softmax
# attention everywhere, from a classifier with spatial reduction, such as
# --cfg-options load_from=published://timm/pvt_v2_b0.in1k.
_base_ = './ecoformer.py'

model = dict(backbone=dict(attention='softmax'))

train_cfg = dict(max_epochs=100)
param_scheduler = [
    dict(
        type='WarmUpCosineLR',
        warm_up=5,
        warm_up_lr=1e-7,
        T_max=100,
        eta_min=1e-6,
        by_epoch=True)
]
custom_hooks = []
