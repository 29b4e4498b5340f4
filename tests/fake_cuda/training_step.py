"""Training steps and operators on fake CUDA tensors: training_step.py FOLDER

FOLDER has hooks.so; results.json is written there.
"""
import importlib.util
import inspect
import json
import sys
import warnings
from pathlib import Path

import torch
from harness import Spy, enable
from launches import VARIANTS, measure
from recorded import CALLS, operator_tensors, ops
from test_contract import SHALLOW
from torch._subclasses.fake_tensor import FakeTensorMode

from mm_efficient import kernels, mmcv_ops

DETECTORS = 'soft_small', 'ecoformer_pvt_b1', 'swiftformer_l1'
DETECTION_SIZE = 1, 800, 1344
# The others are for the CPU, or adapt to the data
NO_WAITING = ['deform_conv_groups', 'modulated_groups', 'ms_deform_attn', 'carafe',
              'psamask_distribute', 'deform_roi_pool_fixed', 'roi_align_max_fixed']
WITH_KERNELS = 'soft', 'reduceformer', 'ecoformer'


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


def with_kernels():
    """Training steps and forward passes of the families that have fused kernels."""
    kernels.switch(True)
    with FakeTensorMode():
        results = {param.id: training_step(*param.values) for param in SHALLOW
                   if param.id.lower().startswith(WITH_KERNELS)}
    for variant in VARIANTS:
        if variant.startswith(WITH_KERNELS):
            results[variant] = measure(variant).result()
    kernels.switch(False)
    return results


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
    results['launches'] = {variant: measure(variant).result() for variant in VARIANTS}
    results['half'] = {
        variant: measure(variant, dtype='half').result() for variant in VARIANTS}
    results['peaks'] = {
        f'{variant} {dtype}':
            measure(variant, DETECTION_SIZE, dtype, train=True).result()
        for variant in DETECTORS for dtype in ('fp32', 'fp16')}
    results['with kernels'] = {}
    if importlib.util.find_spec('triton'):
        results['with kernels'] = with_kernels()
    (folder / 'results.json').write_text(json.dumps(results))


if __name__ == '__main__':
    main(*sys.argv[1:])
