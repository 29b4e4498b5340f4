"""What mmcv's compiled operators gave, see tests/reference/mmcv_ops."""
import importlib
import inspect
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mm_efficient  # noqa: F401  serves mmcv's operators

RECORDED = Path(__file__).parents[1] / 'reference' / 'mmcv_ops'
sys.path.append(str(RECORDED))
from calls import CALLS  # noqa: E402, F401

ops = importlib.import_module('mmcv.ops')  # only now
CASES = json.loads((RECORDED / 'cases.json').read_text())
HALF = [torch.float16, torch.bfloat16]


def cases(op):
    return [pytest.param(case, id=str(case['case'])) for case in CASES
            if case['op'] == op]


def load(file):
    with np.load(RECORDED / file) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def operator_tensors():
    """Inputs, outputs and gradients of each of ``CALLS``."""
    found = {}
    for key, tensor in load('operators.npz').items():
        call, _, name = key.partition('/')
        found.setdefault(call, {})[name] = tensor
    return found


def run(name, tensors, dtype=None, device='cpu'):
    """Outputs and gradients by name, of inputs converted to ``dtype``."""
    leaves = {}
    for key in inspect.signature(CALLS[name]).parameters:
        if key != 'ops':
            leaf = tensors[key].to(device)
            leaf = leaf.to(dtype) if dtype and leaf.is_floating_point() else leaf
            leaves[key] = leaf.detach().clone().requires_grad_(
                f'grad_{key}' in tensors)
    outputs = CALLS[name](ops, **leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs, )
    results = {f'output{i}': output.detach() for i, output in enumerate(outputs)}
    if 'grad_output' in tensors:
        outputs[0].backward(tensors['grad_output'].to(outputs[0]))
    results.update({f'grad_{key}': leaf.grad for key, leaf in leaves.items()
                    if leaf.grad is not None})
    return results
