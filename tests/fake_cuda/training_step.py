"""Training steps and operators on fake CUDA tensors: training_step.py FOLDER

FOLDER has hooks.so; results.json is written there.
"""
import collections
import ctypes
import inspect
import json
import sys
import warnings
from pathlib import Path

import torch
import torch.cuda.amp.common
from recorded import CALLS, operator_tensors, ops
from test_contract import SHALLOW
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from mm_efficient import mmcv_ops

# Views, and what launches nothing
NO_KERNEL = {f'aten::{name}' for name in (
    'detach', 'alias', '_unsafe_view', 'empty', 'empty_like', 'new_empty',
    'empty_strided', 'new_empty_strided', '_reshape_alias', 'lift_fresh',
    '_local_scalar_dense', 'is_same_size', 'sym_size', '_fused_sdp_choice')}

# The others are for the CPU, or adapt to the data
NO_WAITING = ['deform_conv_groups', 'modulated_groups', 'ms_deform_attn', 'carafe',
              'psamask_distribute', 'deform_roi_pool_fixed', 'roi_align_max_fixed']


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors(item)]


class Spy(TorchDispatchMode):
    """Counts what would be launched, tensors made on the CPU, and reads by it."""

    def __init__(self):
        super().__init__()
        self.kernels, self.on_cpu, self.waits = 0, collections.Counter(), 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.name().split('.')[0]
        self.waits += name == 'aten::_local_scalar_dense'
        view = any(r.alias_info is not None and not r.alias_info.is_write
                   for r in func._schema.returns)
        if view or name in NO_KERNEL or name.startswith('prim::') or not tensors(out):
            return out
        if {t.device.type for t in tensors(out)} == {'cpu'}:
            self.on_cpu[name] += 1
        else:
            self.kernels += 1
        return out

    def result(self, **others):
        return dict(kernels=self.kernels, on_cpu=self.on_cpu, waits=self.waits,
                    **others)


def enable(folder):
    """Let autograd and autocast run without a GPU."""
    ctypes.CDLL(str(folder / 'hooks.so')).patch_hooks()
    torch._C._ensureCUDADeviceGuardSet()
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True


def training_step(cls, cfg):
    """Under autocast and with checkpointing, so every kernel runs at least once."""
    with torch.device('cuda'):
        model = cls(**cfg, out_indices=(0, 1, 2, 3), with_cp=True).train()
    model._known_fitted = True  # of EcoFormer
    x, spy = torch.empty(2, 3, 96, 128, device='cuda'), Spy()
    with spy:
        with torch.autocast('cuda', torch.float16):
            outs = model(x)
        sum(out.float().mean() for out in outs).backward()
    return spy.result(without_gradient=[
        key for key, parameter in model.named_parameters() if parameter.grad is None])


def focal_loss(function):
    logits = torch.empty(1000, 80, device='cuda')
    target = torch.empty(1000, dtype=torch.long, device='cuda')
    spy = Spy()
    with spy:
        function(logits, target, logits.new_empty(0), torch.empty_like(logits), 2., .25)
    return spy.result()


def operator(name, recorded):
    """An operator of mmcv and its gradients, in float16."""
    tensors = {
        key: torch.empty(
            tensor.shape, device='cuda',
            dtype=torch.float16 if tensor.is_floating_point() else tensor.dtype)
        for key, tensor in recorded.items()}
    inputs = {key: tensors[key].requires_grad_(f'grad_{key}' in tensors)
              for key in inspect.signature(CALLS[name]).parameters if key != 'ops'}
    spy = Spy()
    with spy:
        output = CALLS[name](ops, **inputs)
        output.backward(tensors['grad_output'])
    return spy.result(without_gradient=[
        key for key, tensor in inputs.items()
        if tensor.requires_grad and tensor.grad is None])


def main(folder):
    folder = Path(folder)
    enable(folder)
    warnings.simplefilter('ignore')
    recorded = operator_tensors()
    with FakeTensorMode():
        results = {param.id: training_step(*param.values) for param in SHALLOW}
        for name in ('forward', 'backward'):
            results[f'focal loss {name}'] = focal_loss(
                getattr(mmcv_ops, f'sigmoid_focal_loss_{name}'))
        for name in NO_WAITING:
            results[f'operator {name}'] = operator(name, recorded[name])
    (folder / 'results.json').write_text(json.dumps(results))


if __name__ == '__main__':
    main(*sys.argv[1:])
