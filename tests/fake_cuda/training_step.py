"""Runs on fake CUDA tensors: training_step.py FOLDER

FOLDER has hooks.so; results.json is written there.
"""
import json
import sys
import warnings
from pathlib import Path

import torch
from harness import Spy, enable
from launches import VARIANTS, measure
from test_contract import SHALLOW
from torch._subclasses.fake_tensor import FakeTensorMode

from mm_efficient import compat


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


def main(folder):
    enable(folder)
    warnings.simplefilter('ignore')
    with FakeTensorMode():
        results = {param.id: training_step(*param.values) for param in SHALLOW}
        for name in ('forward', 'backward'):
            results[f'focal loss {name}'] = focal_loss(
                getattr(compat, f'sigmoid_focal_loss_{name}'))
    results['launches'] = {variant: measure(variant).result() for variant in VARIANTS}
    Path(folder, 'results.json').write_text(json.dumps(results))


if __name__ == '__main__':
    main(*sys.argv[1:])
