"""Record what mmcv's own operators give, into operators.npz.

    python tests/reference/mmcv_ops/record.py BUILD_FOLDER

Compiles the C++ code that mmcv and mmcv-lite carry in ``mmcv/ops/csrc`` (needs a
compiler and ninja, a few minutes) and makes the calls of calls.py with it, through
mmcv's Python. Operators without a CPU form run their CUDA kernels as C++.
"""
import sys
from pathlib import Path
from types import ModuleType

import mmcv
import numpy as np
import torch
from calls import CALLS
from torch.utils.cpp_extension import load

HERE = Path(__file__).parent
CSRC = Path(mmcv.__file__).parent / 'ops' / 'csrc'
WITH_CPU_FORM = ['deform_conv', 'modulated_deform_conv', 'nms', 'roi_align', 'psamask']

# In place of csrc/common/pytorch_cuda_helper.hpp: one thread of one block
CUDA_HELPER = """#pragma once
#include <torch/types.h>
#include <algorithm>
#include <cmath>
#define __global__
#define __device__
#define __host__
#define __shared__
#define __forceinline__ inline
using std::max;
using std::min;
using phalf = at::Half;
struct Index { int x, y; };
static Index threadIdx{0, 0}, blockIdx{0, 0}, blockDim{1, 1}, gridDim{1, 1};
inline void __syncthreads() {}
template <typename T> void atomicAdd(T* address, T value) { *address += value; }
#include "common_cuda_helper.hpp"
"""


def build(folder):
    """Extension of mmcv's operators; the operators not bound raise an error."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / 'pytorch_cuda_helper.hpp').write_text(CUDA_HELPER)
    (folder / 'cuda.h').write_text('')
    (folder / 'cpu.cpp').write_text(''.join(
        f'#include "{CSRC}/pytorch/{part}{name}.cpp"\n'
        for name in WITH_CPU_FORM for part in ('', 'cpu/')))
    extension = load(
        'mmcv_operators', [str(HERE / 'record.cpp'), str(folder / 'cpu.cpp')],
        build_directory=str(folder),
        extra_include_paths=[str(folder), str(CSRC / 'common'),
                             str(CSRC / 'common' / 'cuda')],
        extra_cflags=['-O1'], verbose=True)
    module = ModuleType('mmcv._ext')
    vars(module).update(vars(extension), __getattr__=lambda name: None)
    return module


def random(*shape, scale=1.):
    return scale * torch.randn(*shape, dtype=torch.float64)


def boxes(number, size):
    """Corners with about as many boxes inside the image as partly outside."""
    corner = torch.rand(number, 2).double() * size - size / 5
    extent = torch.rand(number, 2).double() * size / 1.5 + 1
    return torch.cat([corner, corner + extent], 1)


def rois(number, size, inside=False):
    image = torch.arange(number).double()[:, None] % 2
    found = boxes(number, size)
    if inside:
        found = found.clamp(size / 4, size * 3 / 4)
        found[:, 2:] = torch.maximum(found[:, 2:], found[:, :2] + 1)
    return torch.cat([image, found], 1)


def inputs():
    """Tensors of each call; those in float32 have no gradient, others only if named."""
    attention = torch.rand(2, 5, 2, 2, 3).double()
    shapes = torch.tensor([[4, 5], [2, 3]])
    mask = (torch.rand(1, 5, 6) > 0.6).double()
    scored = torch.cat([boxes(25, 20.), torch.rand(25, 1).double()], 1).float()
    found, scores = boxes(30, 15.).float(), torch.rand(30)
    return dict(
        deform_conv=dict(input=random(2, 3, 6, 7), offset=random(2, 18, 6, 7, scale=2),
                         weight=random(4, 3, 3, 3)),
        deform_conv_groups=dict(
            input=random(2, 4, 7, 6), offset=random(2, 24, 4, 6, scale=2),
            weight=random(6, 2, 2, 3)),
        modulated=dict(
            input=random(2, 3, 5, 6), offset=random(2, 18, 5, 6, scale=2),
            mask=torch.rand(2, 9, 5, 6).double(), weight=random(4, 3, 3, 3)),
        modulated_groups=dict(
            input=random(2, 4, 5, 7), offset=random(2, 24, 7, 4, scale=2),
            mask=torch.rand(2, 12, 7, 4).double(), weight=random(4, 2, 2, 3),
            bias=random(4)),
        modulated_larger_maps=dict(
            input=random(2, 3, 3, 4), offset=random(2, 18, 5, 7),
            mask=torch.rand(2, 9, 5, 7).double(), weight=random(4, 3, 3, 3)),
        ms_deform_attn=dict(
            value=random(2, 26, 2, 4), shapes=shapes, starts=torch.tensor([0, 20]),
            locations=1.6 * torch.rand(2, 5, 2, 2, 3, 2).double() - 0.3,
            weights=attention / attention.sum((3, 4), keepdim=True)),
        carafe=dict(features=random(2, 3, 4, 5), masks=random(2, 9, 8, 10)),
        carafe_groups=dict(features=random(1, 4, 3, 4), masks=random(1, 50, 9, 12)),
        psamask_collect=dict(input=random(2, 15, 4, 5)),
        psamask_distribute=dict(input=random(2, 15, 4, 5)),
        psamask_wide=dict(input=random(1, 44, 3, 4)),
        deform_roi_pool=dict(
            input=random(2, 3, 12, 14), rois=rois(6, 48., inside=True),
            offset=random(6, 2, 3, 2, scale=0.5)),
        deform_roi_pool_fixed=dict(
            input=random(2, 3, 12, 14), rois=rois(5, 24., inside=True),
            offset=random(5, 2, 2, 2, scale=0.5)),
        deform_roi_pool_outside=dict(input=random(2, 3, 12, 14), rois=rois(12, 60.)),
        roi_align_max=dict(input=random(2, 3, 12, 14), rois=rois(12, 60.)),
        roi_align_max_fixed=dict(input=random(2, 3, 12, 14), rois=rois(12, 30.)),
        masked_conv2d=dict(features=random(1, 3, 5, 6), mask=mask,
                           weight=random(4, 3, 3, 5), bias=random(4)),
        sync_bn=dict(input=random(3, 4, 2, 5).float(), running_mean=random(4).float(),
                     running_var=torch.rand(4), weight=random(4).float(),
                     bias=random(4).float()),
        nms_match=dict(dets=scored),
        soft_nms_naive=dict(boxes=found, scores=scores),
        soft_nms_linear=dict(boxes=found, scores=scores),
        soft_nms_gaussian=dict(boxes=found, scores=scores),
    )


DIFFERENTIABLE = {'input', 'offset', 'weight', 'mask', 'bias', 'value', 'locations',
                  'weights', 'features', 'masks'}


def record(ops, name, tensors):
    """Inputs, outputs and, where they exist, gradients of one call."""
    leaves = {key: tensor.clone().requires_grad_(
        key in DIFFERENTIABLE and name != 'masked_conv2d')
              for key, tensor in tensors.items()}
    outputs = CALLS[name](ops, **leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs, )
    arrays = {**tensors, **{f'output{i}': x for i, x in enumerate(outputs)}}
    if any(leaf.requires_grad for leaf in leaves.values()):
        arrays['grad_output'] = torch.randn_like(outputs[0])
        outputs[0].backward(arrays['grad_output'])
        arrays.update({f'grad_{key}': leaf.grad for key, leaf in leaves.items()
                       if leaf.grad is not None})
    return {f'{name}/{key}': x.detach().numpy() for key, x in arrays.items()}


def main(folder):
    sys.modules['mmcv._ext'] = build(Path(folder).resolve())
    from mmcv import ops
    torch.manual_seed(0)
    arrays = {}
    for name, tensors in inputs().items():
        arrays.update(record(ops, name, tensors))
    np.savez_compressed(HERE / 'operators.npz', **arrays)


if __name__ == '__main__':
    main(*sys.argv[1:])
