"""Ways to run a model: what is behind a mode like ``channels_last+compile``.

A mode is one of

- ``eager``: PyTorch, operator by operator;
- ``compile``: `torch.compile`;
- ``torchscript``: traced, frozen and optimised for inference, the published way;
- ``onnxruntime``: ONNX Runtime, on the file of PyTorch's exporter;

alone or behind changes to the model that are joined with ``+``:

- ``fused``: batch norms and scales are folded, see :mod:`~mm_efficient.deploy.fusing`;
- ``channels_last``: weights and images in that layout.

fp16 and bf16 are automatic mixed precision, as OpenMMLab tests with it, within the
model: the same for every model, also for those that hold parts in float32.
"""
import contextlib
import copy
import io
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..deploy.fusing import fuse, relative_error, tensors_of
from ..errors import InputError, explain
from ..models.base import fit_where_needed
from .models import find_model
from .timing import Case, cuda_clock, wall_clock

EXECUTORS = ('eager', 'compile', 'torchscript', 'onnxruntime')
CHANGES = ('fused', 'channels_last')
DTYPES = dict(fp32=None, fp16=torch.float16, bf16=torch.bfloat16)
FIT_SIZE = 96  # side of the random images hash functions are fitted to


@dataclass
class Executable:
    """A model that is ready to be timed.

    Args:
        run (Callable): One pass; gives tensors.
        clock (Callable): Times a call.
        weights (int): Bytes of its weights.
        traced (bool): Whether its memory is PyTorch's, and can be measured.
    """
    run: Callable[[], list[Tensor]]
    clock: Callable[[Callable], float]
    weights: int
    traced: bool = True


class Forward(nn.Module):
    """A model as one module from images to a tuple of tensors.

    Args:
        model (nn.Module): The model.
        run (Callable): Calls it with images.
        dtype (torch.dtype, optional): Of mixed precision. Defaults to None, without.
    """

    def __init__(self, model: nn.Module, run: Callable[[nn.Module, Tensor], Any],
                 dtype: torch.dtype | None = None):
        super().__init__()
        self.model = model
        self.run = run
        self.dtype = dtype

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> all tensors of the output."""
        if self.dtype is None:
            return tuple(tensors_of(self.run(self.model, x)))
        with torch.autocast(x.device.type, self.dtype, cache_enabled=False):
            return tuple(tensors_of(self.run(self.model, x)))


def check_mode(mode: str) -> None:
    """Check the name of a mode.

    Args:
        mode (str): Changes and an executor, joined with ``+``.

    Raises:
        InputError: If it is unknown or cannot be had here.
    """
    changes, executor = _parse(mode)
    unknown = [name for name in changes if name not in CHANGES]
    if executor not in EXECUTORS or unknown or (
            executor == 'onnxruntime' and 'channels_last' in changes):
        raise InputError(
            f'unknown mode {mode!r}; expected one of {", ".join(EXECUTORS)}, alone or '
            f'behind {", ".join(CHANGES)}, as in fused+channels_last+compile. (ONNX '
            'Runtime chooses the layout itself.)')
    if executor == 'onnxruntime':
        try:
            import onnxruntime  # noqa: F401
            import onnxscript  # noqa: F401
        except ImportError as error:
            raise InputError(f'mode {mode} needs a package that is not installed: '
                             f'{error}. pip install onnx onnxscript onnxruntime, or '
                             'onnxruntime-gpu.') from None


def _parse(mode: str) -> tuple[list[str], str]:
    names = mode.split('+')
    executor = 'eager' if names[-1] in CHANGES else names.pop()
    return names, executor


def build(name: str, device: str, backbone: bool = False) -> Forward:
    """A model with random weights.

    Args:
        name (str): See :func:`~.zoo.find_model`.
        device (str): Where to put it.
        backbone (bool): Whether to take the backbone alone; of a model of timm all but
            its head. Defaults to False.

    Returns:
        Forward: In eval mode.

    Raises:
        InputError: If there is no such model, or it cannot be timed.
    """
    subject = find_model(name)
    torch.manual_seed(0)
    model, run = subject.build(), subject.run
    if backbone:
        if hasattr(model, 'backbone'):
            model, run = model.backbone, _call
        elif hasattr(model, 'forward_features'):
            run = _features
        else:
            raise InputError(f'{name} has no backbone that could be timed alone.')
    elif hasattr(model, 'roi_head'):
        raise InputError(
            f'{name} has two stages: what the second does depends on the image. Time '
            'its backbone with --backbone, or the tested model with tools/test.py.')
    fit_where_needed(model, torch.randn(2, 3, FIT_SIZE, FIT_SIZE))
    # In this order: eval() of OpenMMLab's ResNet and Swin themselves returns None
    return Forward(model.requires_grad_(False).to(device), run).eval()


def _call(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def _features(model: nn.Module, x: Tensor) -> Any:
    return model.forward_features(x)


def prepare(model: Forward, case: Case, x: Tensor) -> Executable:
    """Make a model ready to be run in a mode.

    Args:
        model (Forward): From :func:`build`; not changed.
        case (Case): Mode and precision.
        x (Tensor): The images, on the device.

    Returns:
        Executable: Calls the model with them.

    Raises:
        InputError: If the mode cannot run this model.
    """
    changes, executor = _parse(case.mode)
    module = Forward(model.model, model.run, DTYPES[case.dtype]).eval()
    clock = cuda_clock if x.is_cuda else wall_clock
    if changes:
        module = copy.deepcopy(module)
    if 'fused' in changes:
        fuse(module.model, x[:1], module.run)
    if 'channels_last' in changes:
        module = module.to(memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)
    weights = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    with explain(f'{case.model} cannot be run as {case.mode}'), \
            torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter('ignore')  # of tracers
        if executor == 'onnxruntime':
            return Executable(_onnx(module, case, x), wall_clock, weights, False)
        if executor == 'compile':
            module = torch.compile(module, dynamic=False)
        elif executor == 'torchscript':
            module = torch.jit.trace(module, x, check_trace=False)
            module = torch.jit.optimize_for_inference(torch.jit.freeze(module))

    def run():
        with torch.inference_mode():
            return module(x)
    return Executable(run, clock, weights)


def _onnx(module: Forward, case: Case, x: Tensor) -> Callable[[], list[Tensor]]:
    """A session on the exported model, its images bound on the device."""
    import onnxruntime
    if case.dtype != 'fp32':
        raise InputError(f'mode {case.mode} runs fp32 only, asked for {case.dtype}.')
    provider = 'CUDAExecutionProvider' if x.is_cuda else 'CPUExecutionProvider'
    if provider not in onnxruntime.get_available_providers():
        raise InputError(f'ONNX Runtime has no {provider} here: pip install '
                         'onnxruntime-gpu instead of onnxruntime.')
    with contextlib.redirect_stdout(io.StringIO()):  # the exporter talks
        program = torch.onnx.export(module, (x, ), dynamo=True, verbose=False)
    file = io.BytesIO()
    program.save(file)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    graph = {'enable_cuda_graph': '1'} if x.is_cuda else {}
    session = onnxruntime.InferenceSession(file.getvalue(), options,
                                           providers=[(provider, graph)])
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

    def run():
        session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return outputs
    return run


def deviation(outputs: Sequence[Tensor], reference: Sequence[Tensor]) -> float:
    """How far outputs are from those of a reference.

    Args:
        outputs (Sequence[Tensor]): Tensors.
        reference (Sequence[Tensor]): As many, of the same shapes.

    Returns:
        float: The largest difference of an output, over the largest magnitude of its
        reference.
    """
    return max(relative_error(y.float(), z.float()) for y, z in zip(outputs, reference))


def peak_memory(executable: Executable, device: str) -> float | None:
    """Most memory that the tensors of a pass take, and the weights.

    Of other models in the process nothing is counted, neither are the operators'
    scratch memory on a CPU, and what an allocator keeps.

    Args:
        executable (Executable): Warmed up.
        device (str): Where it runs.

    Returns:
        float: MiB; None if another library runs it.
    """
    if not executable.traced:
        return None
    if device.startswith('cuda'):
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        executable.run()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = _cpu_peak(executable.run)
    return (peak + executable.weights) / 2**20


def _cpu_peak(run: Callable[[], Any]) -> int:
    """Bytes, from what the profiler notes of every allocation."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with torch.profiler.profile(profile_memory=True, activities=[
                torch.profiler.ProfilerActivity.CPU]) as profiler:
            kept = run()
    events = [event for event in profiler.profiler.kineto_results.events()
              if event.name() == '[memory]']
    start = 'start_ns' if events and hasattr(events[0], 'start_ns') else 'start_us'
    now = peak = 0
    for event in sorted(events, key=lambda event: getattr(event, start)()):
        now += event.nbytes()
        peak = max(peak, now)
    del kept
    return peak
