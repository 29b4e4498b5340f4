"""Inductor's code for a GPU, without one.

Compiles training steps of backbones with one block per stage, for sizes that are
variables, as CompileBackboneHook does, up to Triton's source code, which is not run.
Prints the number of kernels of each; an exception is what a GPU would meet. Replaces
what asks the driver, so it is for the PyTorch of requirements/. Needs a C++ compiler.
"""
import argparse
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import harness
import torch
import torch._inductor.fx_passes.joint_graph
import torch._inductor.fx_passes.post_grad
import torch._inductor.scheduler
from torch._dynamo.device_interface import CudaInterface
from torch._inductor import config
from torch._inductor.async_compile import AsyncCompile
from torch._inductor.compile_fx import compile_fx
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

from mm_efficient.engine.backbone_speed import _mark_sizes
from mm_efficient.engine.inductor import compile_for_any_size

sys.path.append(str(Path(__file__).parents[1] / 'models'))
from test_contract import SHALLOW, build, image  # noqa: E402

CUDA = torch.device('cuda', 0)
H200 = SimpleNamespace(
    name='NVIDIA H200', major=9, minor=0, multi_processor_count=132, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    regs_per_multiprocessor=65536, shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472,
    L2_cache_size=60 * 2**20, total_memory=150 * 10**9, gcnArchName='')


class Compiled(BaseException):
    """Ends the compilation, whose result cannot run."""


class Backend:
    """Compiles graphs captured on a CPU as if their tensors were on a GPU."""

    def __init__(self):
        self.kernels = []

    def __call__(self, graph, inputs):
        context = torch._guards.TracingContext.get()
        # What follows must not expect real tensors
        context.fakify_first_call = True
        for module in graph.modules():
            if isinstance(module, torch.fx.GraphModule):
                self.move(module)
        values = [node.meta['example_value'] for node in graph.graph.nodes
                  if node.op == 'placeholder']
        with context.fake_mode:
            moved = [torch.empty_strided(
                x.size(), x.stride(), dtype=x.dtype, device=CUDA,
                requires_grad=x.requires_grad) if isinstance(x, torch.Tensor) else x
                for x in values]
        with on_gpu(self.kernels):
            compile_fx(graph, moved)
        raise Compiled

    def move(self, module):
        for node in module.graph.nodes:
            if 'device' in node.kwargs:
                node.kwargs = {**node.kwargs, 'device': CUDA}
            if node.target is torch._C._nn.scaled_dot_product_attention:
                node.target = attention
        module.recompile()


def attention(query, key, value, *_, **settings):
    """By the kernel that CUDA takes in float32, which fake tensors do not ask."""
    return torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True)[0]


@contextmanager
def on_gpu(kernels):
    """Answer in place of the driver, and keep the names of kernels."""
    def keep(self, name, source, device_str):
        kernels.append(name)

    replaced = {
        torch.cuda: dict(
            is_available=lambda: True, device_count=lambda: 1,
            current_device=lambda: 0, set_device=lambda _: None,
            get_device_properties=lambda *_: H200,
            _get_device_properties=lambda *_: H200, synchronize=lambda *_: None,
            get_device_capability=lambda *_: (9, 0), _lazy_init=lambda: None,
            get_rng_state=lambda *_: torch.zeros(16, dtype=torch.uint8),
            set_rng_state=lambda *_: None, _exchange_device=lambda _: 0,
            _maybe_exchange_device=lambda _: 0),
        CudaInterface: dict(
            is_available=staticmethod(lambda: True),
            get_compute_capability=staticmethod(lambda *_: 90),
            raise_if_triton_unavailable=staticmethod(lambda *_: None)),
        CudaInterface.Worker: dict(
            get_device_properties=staticmethod(lambda *_: H200),
            current_device=staticmethod(lambda: 0)),
        torch._inductor.scheduler: dict(has_triton=lambda: True),
        AsyncCompile: dict(triton=keep),
        # Patterns are made by running examples on the device
        torch._inductor.fx_passes.joint_graph: dict(lazy_init=lambda *_: None),
        torch._inductor.fx_passes.post_grad: dict(lazy_init=lambda *_: None)}
    driver.set_active(SimpleNamespace(
        get_current_target=lambda: GPUTarget('cuda', 90, 32),
        get_current_device=lambda: 0))
    with ExitStack() as stack:
        for owner, new in replaced.items():
            stack.enter_context(mock.patch.multiple(owner, create=True, **new))
        stack.enter_context(config.patch(
            joint_graph_constant_folding=False, compile_threads=1,
            fx_graph_cache=False))
        yield


def kernels_of(cls, cfg):
    """Names of the kernels of a training step, forward and backward."""
    torch.compiler.reset()
    model = build(cls, cfg, pretrain_size=224, drop_path_rate=0.).train()
    x, backend = image(2, 96, 128), Backend()
    _mark_sizes(model, (x, ))
    try:
        torch.compile(model, backend=backend)(x)
    except Compiled:
        return backend.kernels


def parse_args():
    names = [param.id for param in SHALLOW]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('backbones', nargs='*', metavar='BACKBONE',
                        help=', '.join(names) + ' (default: all)')
    parser.add_argument('--coalesce', action='store_true',
                        help='with the analysis that compile_for_any_size turns off')
    args = parser.parse_args()
    if unknown := {*args.backbones} - {*names}:
        parser.error(f'unknown {unknown}; expected some of {", ".join(names)}')
    args.backbones = args.backbones or names
    return args


def main():
    args = parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if errors := harness.build_hooks(folder):
            raise SystemExit(f'error: hooks.cpp does not compile:\n{errors}')
        harness.enable(folder)
    torch.nn.functional.scaled_dot_product_attention = harness.plain_attention
    compile_for_any_size()
    if args.coalesce:
        config.triton.coalesce_tiling_analysis = True
    for param in SHALLOW:
        if param.id in args.backbones:
            start = time.perf_counter()
            kernels = kernels_of(*param.values)
            print(f'{param.id}: {len(kernels)} kernels, '
                  f'{time.perf_counter() - start:.0f} s', flush=True)


if __name__ == '__main__':
    main()
