"""Fake CUDA tensors: a device, a type and a shape without values, and a spy on them."""
import collections
import ctypes
import os
import subprocess
import weakref
from pathlib import Path

import torch
import torch.cuda.amp.common
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

HERE = Path(__file__).parent
COMPILER = os.environ.get('CXX', 'c++')
# Views, and what launches nothing
NO_KERNEL = {f'aten::{name}' for name in (
    'detach', 'alias', '_unsafe_view', 'empty', 'empty_like', 'new_empty',
    'empty_strided', 'new_empty_strided', '_reshape_alias', 'lift_fresh',
    '_local_scalar_dense', 'is_same_size', 'sym_size', '_fused_sdp_choice')}

# Kernels that operators of mm_efficient start; all others count as one
STARTED = {'mm_efficient::normalized_inverse_backward': 2,
           'mm_efficient::gaussian_attention': 3,
           'mm_efficient::gaussian_attention_backward': 4,
           'mm_efficient::reduction_attention': 2,
           'mm_efficient::reduction_attention_backward': 2,
           'mm_efficient::hash_attention': 4,
           'mm_efficient::hash_attention_backward': 3}


def build_hooks(folder):
    """Compile hooks.cpp, which autograd needs; returns the compiler's errors, or ''."""
    root = Path(torch.__file__).parent
    return subprocess.run(
        [COMPILER, '-shared', '-fPIC', '-std=c++17', HERE / 'hooks.cpp', '-o',
         Path(folder, 'hooks.so'), f'-I{root}/include', f'-L{root}/lib', '-ltorch_cpu',
         '-lc10', f'-Wl,-rpath,{root}/lib'], capture_output=True, text=True).stderr


def enable(folder=None):
    """Let autocast, and with a folder that has hooks.so autograd, run without a GPU."""
    if folder is not None:
        ctypes.CDLL(str(Path(folder, 'hooks.so'))).patch_hooks()
    torch._C._ensureCUDADeviceGuardSet()
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.cuda.is_bf16_supported = lambda *args, **kwargs: True


def tensors(value):
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors(item)]


def attention(query, key, value, dropout_p=0.):
    """Attention by the kernel that CUDA would take, which fake tensors do not ask."""
    inputs = query, key, value
    if query.device.type != 'cuda' or any(x.stride(-1) != 1 for x in inputs):
        return plain_attention(*inputs, dropout_p=dropout_p)
    if query.dtype in (torch.float16, torch.bfloat16):
        return torch.ops.aten._scaled_dot_product_flash_attention(*inputs, dropout_p)[0]
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        *inputs, None, query.requires_grad, dropout_p)[0]


plain_attention = F.scaled_dot_product_attention
F.scaled_dot_product_attention = attention  # before MMPretrain is imported


class Spy(TorchDispatchMode):
    """Counts what would be launched and the bytes it reads and writes.

    Operators count as one launch each, those of mm_efficient as what they start, views
    and allocations as none. What a kernel copies inside, e.g. to make its input
    contiguous, is not seen. Also counted: tensors
    made on the CPU, reads that wait for the device, and the largest number of bytes
    that tensors made in the meantime hold at a time.
    """

    def __init__(self):
        super().__init__()
        self.launches, self.bytes, self.on_cpu = (collections.Counter()
                                                  for _ in range(3))
        self.waits = self.held = self.peak = 0
        self.storages = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name().split('.')[0]
        out = func(*args, **(kwargs or {}))
        self.waits += name == 'aten::_local_scalar_dense'
        for tensor in tensors(out):
            self._hold(tensor)
        view = any(r.alias_info is not None and not r.alias_info.is_write
                   for r in func._schema.returns)
        if view or name in NO_KERNEL or name.startswith('prim::') or not tensors(out):
            return out
        if {t.device.type for t in tensors(out)} == {'cpu'}:
            self.on_cpu[name] += 1
            return out
        self.launches[name] += STARTED.get(name, 1)
        self.bytes[name] += sum(t.numel() * t.element_size() for t in tensors(
            [args, kwargs or {}, out]))
        return out

    def _hold(self, tensor):
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self.storages or tensor.device.type == 'cpu':
            return
        self.storages.add(key)
        self.held += size
        self.peak = max(self.peak, self.held)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key, size):
        self.storages.discard(key)
        self.held -= size

    def result(self, **others):
        return dict(kernels=sum(self.launches.values()),
                    gigabytes=sum(self.bytes.values()) / 1e9, peak=self.peak / 1e9,
                    on_cpu=self.on_cpu, waits=self.waits, **others)
