"""Backends of the benchmark: ways to run a model, such as ``channels_last+compile``.

A backend is ``eager``, ``compile`` (`torch.compile`), ``torchscript`` (traced, frozen
and optimised for inference, as LowFormer's authors do) or ``onnxruntime``. Changes to
the model may precede it, joined with ``+``: ``fused``
(:func:`~mm_efficient.deploy.fuse`) and ``channels_last`` (memory format of weights and
images).

fp16 and bf16 are automatic mixed precision inside the model, as in OpenMMLab's tests:
it works for every model, including those that compute parts in float32.
"""
import contextlib
import copy
import io
import time
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..deploy import fuse, tensors_of
from ..errors import InputError
from ..models.base import fit_where_needed
from .models import call_model, find_model

BACKENDS = ('eager', 'compile', 'torchscript', 'onnxruntime')
CHANGES = ('fused', 'channels_last')
DTYPES = dict(fp32=None, fp16=torch.float16, bf16=torch.bfloat16)
FIT_SIZE = 96  # side of the random images that hash functions are fitted to


class Forward(nn.Module):
    """A model as a module from images to a tuple of tensors.

    Args:
        model (nn.Module): The model.
        run (Callable): Function that calls it with images.
        dtype (torch.dtype, optional): For mixed precision. Defaults to None, float32.
    """

    def __init__(self, model: Any, run: Callable[[nn.Module, Tensor], Any],
                 dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self.run = run
        self.dtype = dtype

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> all tensors of the output."""
        with torch.autocast(x.device.type, self.dtype, cache_enabled=False
                            ) if self.dtype else contextlib.nullcontext():
            return tuple(tensors_of(self.run(self.model, x)))


class Prepared(NamedTuple):
    """A model that is ready to be timed.

    Args:
        forward (Callable): Runs one pass and returns the output tensors.
        clock (Callable): Runs one pass and returns its seconds.
        weights (int, optional): Size of its weights in bytes. None if its memory is
            not PyTorch's.
    """

    forward: Callable[[], Sequence[Tensor]]
    clock: Callable[[], float]
    weights: int | None


def check_backend(backend: str, dtype: str = 'fp32') -> None:
    """Check the name of a backend, and that it is installed.

    Args:
        backend (str): See this module's docstring.
        dtype (str): A key of ``DTYPES``. Defaults to 'fp32'.

    Raises:
        InputError: If the backend is unknown, not installed or without this dtype.
    """
    changes, base = _split(backend)
    if base not in BACKENDS or not {*changes} <= {*CHANGES} or (
            base == 'onnxruntime' and 'channels_last' in changes):
        raise InputError(
            f'unknown backend {backend!r}; expected {", ".join(BACKENDS)}, alone or '
            f'after {", ".join(CHANGES)}, such as fused+channels_last+compile. (ONNX '
            'Runtime chooses the memory format itself.)')
    if base == 'onnxruntime' and dtype != 'fp32':
        raise InputError(f'backend {backend} supports fp32 only, got {dtype}; leave '
                         'one of them out.')
    if base == 'onnxruntime':
        try:
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise InputError(f'backend {backend} needs a missing package ({error}); '
                             'pip install onnx onnxscript onnxruntime, or '
                             'onnxruntime-gpu.') from None


def _split(backend: str) -> tuple[list[str], str]:
    *changes, base = backend.split('+')
    return ([*changes, base], 'eager') if base in CHANGES else (changes, base)


def build_model(name: str, device: str, backbone: bool = False) -> Forward:
    """Build a model with random weights.

    Args:
        name (str): See :func:`~.models.find_model`.
        device (str): Device to put it on.
        backbone (bool): Build the backbone only; for timm models, all but the head.
            Defaults to False.

    Returns:
        Forward: In eval mode.

    Raises:
        InputError: If there is no such model, or it cannot be timed.
    """
    spec = find_model(name)
    torch.manual_seed(0)
    model: Any = spec.build()
    run = spec.run
    if backbone:
        if hasattr(model, 'backbone'):
            model, run = model.backbone, call_model
        elif hasattr(model, 'forward_features'):
            run = _forward_features
        else:
            raise InputError(f'{name} has no backbone; leave out --backbone.')
    elif hasattr(model, 'roi_head'):
        raise InputError(
            f'{name} has two stages, and the cost of the second depends on the image. '
            'Time its backbone with --backbone, or the trained model with '
            'tools/test.py.')
    fit_where_needed(model, torch.randn(2, 3, FIT_SIZE, FIT_SIZE))
    # In this order: eval() of OpenMMLab's ResNet and Swin returns None
    return Forward(model.requires_grad_(False).to(device), run).eval()


def _forward_features(model: Any, x: Tensor) -> Any:
    return model.forward_features(x)


def prepare(model: Forward, backend: str, dtype: str, x: Tensor) -> Prepared:
    """Prepare a model for a backend.

    If a backend cannot run the model, its library's exception propagates.

    Args:
        model (Forward): From :func:`build_model`. It is not changed.
        backend (str): See :func:`check_backend`.
        dtype (str): A key of ``DTYPES``.
        x (Tensor): Images, (B, 3, H, W), on the device of the model.

    Returns:
        Prepared: Runs the model on ``x``.
    """
    changes, base = _split(backend)
    module: Any = Forward(model.model, model.run, DTYPES[dtype]).eval()
    if changes:
        module = copy.deepcopy(module)
    if 'fused' in changes:
        fuse(module.model, x[:1], module.run)
    if 'channels_last' in changes:
        module = module.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    weights = sum(t.nbytes for t in module.state_dict().values())
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # tracer warnings
        if base == 'onnxruntime':
            session = _onnx_session(module, x)
            return Prepared(session, partial(wall_clock, session), None)
        if base == 'compile':
            module = torch.compile(module, dynamic=False)
        elif base == 'torchscript':
            module = torch.jit.trace(module, x, check_trace=False)
            module = torch.jit.optimize_for_inference(torch.jit.freeze(module))

    def forward() -> Sequence[Tensor]:
        with torch.inference_mode():
            return module(x)
    return Prepared(forward, partial(cuda_clock if x.is_cuda else wall_clock, forward),
                    weights)


def _onnx_session(module: Forward, x: Tensor) -> Callable[[], Sequence[Tensor]]:
    """ONNX Runtime on the exported model, with inputs and outputs on the device."""
    import onnxruntime
    provider = 'CUDAExecutionProvider' if x.is_cuda else 'CPUExecutionProvider'
    if provider not in onnxruntime.get_available_providers():
        raise InputError(f'ONNX Runtime has no {provider} here; pip install '
                         'onnxruntime-gpu instead of onnxruntime.')
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter prints
        program: Any = torch.onnx.export(module, (x, ), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options,
        providers=[(provider, {'enable_cuda_graph': '1'} if x.is_cuda else {})])
    x = x.contiguous()
    outputs = [torch.empty_like(y, memory_format=torch.contiguous_format)
               for y in module(x)]
    binding = session.io_binding()
    for bind, node, tensor in [
            (binding.bind_input, session.get_inputs()[0], x),
            *((binding.bind_output, node, tensor)
              for node, tensor in zip(session.get_outputs(), outputs))]:
        bind(node.name, tensor.device.type, tensor.device.index or 0, np.float32,
             tuple(tensor.shape), tensor.data_ptr())

    def forward() -> Sequence[Tensor]:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return outputs
    return forward


def wall_clock(forward: Callable[[], object]) -> float:
    """Seconds of a call."""
    start = time.perf_counter()
    forward()
    return time.perf_counter() - start


def cuda_clock(forward: Callable[[], object]) -> float:
    """Seconds between two events of the current CUDA device around a call."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    forward()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def peak_mib(prepared: Prepared, device: str) -> float | None:
    """Measure the peak memory of the weights and of all tensors of a pass.

    Excludes other models in the process, scratch memory of CPU operators and what an
    allocator keeps cached.

    Args:
        prepared (Prepared): A model that is warmed up.
        device (str): Its device.

    Returns:
        float | None: MiB; None if another library runs the model.
    """
    if prepared.weights is None:
        return None
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        prepared.forward()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = _cpu_peak(prepared.forward)
    return (peak + prepared.weights) / 2**20


def _cpu_peak(forward: Callable[[], object]) -> int:
    """Peak in bytes of what a call allocates, from the profiler's memory events."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with torch.profiler.profile(profile_memory=True, activities=[
                torch.profiler.ProfilerActivity.CPU]) as profiler:
            outputs = forward()  # keep them: freeing is not part of the call
    results: Any = profiler.profiler
    events = [event for event in results.kineto_results.events()
              if event.name() == '[memory]']
    start = 'start_ns' if events and hasattr(events[0], 'start_ns') else 'start_us'
    now = peak = 0
    for event in sorted(events, key=lambda event: getattr(event, start)()):
        now += event.nbytes()
        peak = max(peak, now)
    del outputs
    return peak
