"""Backends of the benchmark: ways to run a model, such as ``channels_last+compile``.

A backend is ``eager``, ``compile`` (`torch.compile`), ``torchscript`` (traced, frozen
and optimised for inference, as LowFormer's authors do), ``onnxruntime`` or
``cudagraph`` (the eager model as a CUDA graph: all its kernels, launched at once).
Changes to the model may precede it, joined with ``+``: ``fused``
(:func:`~mm_efficient.deploy.fuse`), ``channels_last`` (memory format of weights and
images) and ``converted`` (weights and images in half precision, for deployment).

A step is ``forward``, inference, or ``train``, forward and backward in training mode,
with ``eager`` or ``compile``.

fp16 and bf16 are automatic mixed precision inside the model, as in OpenMMLab's tests,
unless it is ``converted``: it works for every model, including those that compute parts
in float32, but casts each weight in every pass.
"""
import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.modules.dropout import _DropoutNd

from ..deploy import check_format, deploy_model, fuse, randomize
from ..errors import InputError
from ..models.base import fit_where_needed
from .complexity import Forward, call_model
from .models import find_model

BACKENDS = ('eager', 'compile', 'torchscript', 'onnxruntime', 'cudagraph')
CHANGES = ('fused', 'channels_last', 'converted')
STEPS = ('forward', 'train')
DTYPES = dict(fp32=None, fp16=torch.float16, bf16=torch.bfloat16)
FIT_SIZE = 96  # side of the random images that hash functions are fitted to


class Result(NamedTuple):
    """What a step computes: the model's outputs and, in training, all gradients."""

    outputs: Sequence[Tensor]
    gradients: Sequence[Tensor] = ()


Step = Callable[[], Result]


def check_backend(backend: str, dtype: str, step: str = 'forward',
                  device: str = 'cpu') -> None:
    """Check the name of a backend, and that it is installed.

    Args:
        backend (str): See this module's docstring.
        dtype (str): A key of ``DTYPES``.
        step (str): One of ``STEPS``. Defaults to 'forward'.
        device (str): Device to run on. Defaults to 'cpu'.

    Raises:
        InputError: If the backend is unknown, not installed or without this dtype, step
            or device.
    """
    changes, base = _split(backend)
    onnx = base == 'onnxruntime'
    if base not in BACKENDS or not {*changes} <= {*CHANGES} or (
            onnx and 'channels_last' in changes):
        raise InputError(
            f'unknown backend {backend!r}; expected {", ".join(BACKENDS)}, alone or '
            f'after {", ".join(CHANGES)}, such as fused+channels_last+compile. (ONNX '
            'Runtime chooses the memory format itself.)')
    if onnx and dtype != 'fp32':
        raise InputError(f'backend {backend} supports fp32 only, got {dtype}; leave '
                         'one of them out.')
    if 'converted' in changes and dtype == 'fp32':
        raise InputError(f'backend {backend} converts to half precision, got fp32; add '
                         '--dtype fp16 or bf16, or leave the backend out.')
    if base == 'cudagraph' and not device.startswith('cuda'):
        raise InputError(f'backend {backend} is for CUDA only, got device {device}; '
                         'add --device cuda, or leave the backend out.')
    if step == 'train' and (base not in ('eager', 'compile')
                            or not {*changes} <= {'channels_last'}):
        raise InputError(f'backend {backend} is for inference only; expected eager, '
                         'compile, channels_last or channels_last+compile with --step '
                         'train.')
    if onnx:
        check_format('onnx', 'model.onnx')


def _split(backend: str) -> tuple[list[str], str]:
    *changes, base = backend.split('+')
    return ([*changes, base], 'eager') if base in CHANGES else (changes, base)


def build_model(name: str, x: Tensor, backbone: bool = False) -> Forward:
    """Build a model with random weights, on the device of the images it is to run on.

    Args:
        name (str): See :func:`~.models.find_model`.
        x (Tensor): Images, (B, 3, H, W). The first one sets batch-norm statistics.
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
    if backbone and hasattr(model, 'backbone'):
        model, run = model.backbone, call_model
    elif backbone and hasattr(model, 'forward_features'):
        run = _forward_features
    elif backbone:
        raise InputError(f'{name} has no backbone; leave out --backbone.')
    elif hasattr(model, 'roi_head'):
        # With box decoding and NMS, for a fixed number of boxes
        model, run = deploy_model(model.eval()), call_model
    fit_where_needed(model, torch.randn(2, 3, FIT_SIZE, FIT_SIZE))
    # In this order: eval() of OpenMMLab's ResNet and Swin returns None
    forward = Forward(model.requires_grad_(False).to(x.device), run).eval()
    randomize(forward.model, run, [x[:1]])  # with initial weights some overflow
    return forward


def _forward_features(model: Any, x: Tensor) -> Any:
    return model.forward_features(x)


def prepare(model: Forward, backend: str, dtype: str, x: Tensor, step: str = 'forward'
            ) -> tuple[Step, int | None]:
    """Prepare a model for a backend.

    If a backend cannot run the model, its library's exception propagates.

    Args:
        model (Forward): From :func:`build_model`. It is not changed.
        backend (str): See :func:`check_backend`.
        dtype (str): A key of ``DTYPES``.
        x (Tensor): Images, (B, 3, H, W), on the device of the model.
        step (str): One of ``STEPS``. Defaults to 'forward'.

    Returns:
        tuple: Function that runs the model; bytes of its weights, None if unmeasured.
    """
    changes, base = _split(backend)
    module: Any = Forward(model.model, model.run, DTYPES[dtype]).eval()
    if changes or step == 'train':
        module = copy.deepcopy(module)
    if 'fused' in changes:
        fuse(module.model, x[:1], module.run)
    if 'channels_last' in changes:
        module = module.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    if 'converted' in changes:
        module, x = module.to(module.dtype), x.to(module.dtype)
        module.dtype = None  # no autocast
    weights = sum(t.nbytes for t in module.state_dict().values())
    if step == 'train':
        return _training_step(module, base == 'compile', x), weights
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # tracer warnings
        if base in ('onnxruntime', 'cudagraph'):
            start = _onnx_session if base == 'onnxruntime' else _captured_step
            return start(module, x), None
        if base == 'compile':
            module = torch.compile(module, dynamic=False)
        elif base == 'torchscript':
            module = torch.jit.trace(module, x, check_trace=False)
            module = torch.jit.optimize_for_inference(torch.jit.freeze(module))
    return torch.inference_mode()(lambda: Result(module(x))), weights


def _training_step(module: Forward, compiled: bool, x: Tensor) -> Step:
    """Forward and backward pass in training mode, without anything random."""
    module.requires_grad_(True).train()
    parts: Iterable[Any] = module.modules()
    for part in parts:
        if isinstance(part, _DropoutNd):
            part.p = 0.
        elif type(part).__name__ == 'DropPath':  # MMCV's and timm's
            part.drop_prob = 0.
    run: Any = torch.compile(module, dynamic=False) if compiled else module
    parameters = [*module.parameters()]

    def step() -> Result:
        outputs = run(x)
        # The factor keeps gradients in the range of float16
        loss: Any = sum(1e3 * y.float().square().mean() for y in outputs)
        loss.backward()
        gradients = [p.grad for p in parameters if p.grad is not None]
        for parameter in parameters:
            parameter.grad = None
        return Result(outputs, gradients)
    return step


def _captured_step(module: Forward, x: Tensor) -> Step:
    """The kernels of a forward pass, captured in a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # libraries set up handles and kernels first
        for _ in range(3):
            module(x)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = Result(module(x))
    # The graph knows only the addresses of weights and images: hold on to them
    return partial(_replay, graph, result, (module, x))


def _replay(graph: Any, result: Result, held: Any) -> Result:
    graph.replay()
    return result


def _onnx_session(module: Forward, x: Tensor) -> Step:
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
    index = x.device.index or 0
    settings = {'device_id': str(index), 'enable_cuda_graph': '1'} if x.is_cuda else {}
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), options,
        providers=[(provider, settings)])
    outputs = [torch.empty_like(y, memory_format=torch.contiguous_format)
               for y in module(x)]
    binding = session.io_binding()
    for bind, node, tensor in [
            (binding.bind_input, session.get_inputs()[0], x),
            *((binding.bind_output, node, tensor)
              for node, tensor in zip(session.get_outputs(), outputs))]:
        bind(node.name, tensor.device.type, index, np.float32,
             tuple(tensor.shape), tensor.data_ptr())

    if x.is_cuda:  # ONNX Runtime has a stream of its own
        torch.cuda.synchronize()

    def forward() -> Result:
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return Result(outputs)
    return forward
