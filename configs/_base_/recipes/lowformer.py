# How LowFormer was trained. Learning rates are published per GPU, the number of GPUs is
# not: these are for 8, and --auto-scale-lr adapts them. Gradients of several iterations
# are averaged here and summed in the original: a leaf with accumulation clips at a
# fraction of 2, and has `accumulation` among its hooks.
_base_ = './efficientvit.py'

model = dict(backbone=dict(type='LowFormer'))

# Published are exceptions by name, "norm" and "bias": these norms have other names and
# are decayed.
optim_wrapper = dict(
    paramwise_cfg=dict(custom_keys={
        'reduce.1.weight': dict(decay_mult=1.0),
        'attn.body.0.weight': dict(decay_mult=1.0),
        'mlp.body.0.weight': dict(decay_mult=1.0)
    }))

accumulation = dict(type='AccumulationRestartHook')
drop_path = dict(order=['local', 'attn', 'mlp'])
custom_hooks = [
    _base_.ema, _base_.precise_bn,
    dict(_base_.drop_path, **drop_path)
]
