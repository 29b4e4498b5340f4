"""Count parameters, multiply-adds and activations of a model, by module.

PyTorch's `FlopCounterMode` counts operators as they are dispatched, so matmuls inside
functions (attention, einsum, SOFT's landmark inverse) count like those of layers.

- MACs: multiply-adds of convolutions, linear layers and all other matmuls. One MAC is
  two FLOPs. Elementwise work (norms, activations, softmax, residuals, pooling,
  resizing, RoI sampling) and biases do not count.
- Activations: output elements of the same operators, plus the scores of attention,
  even where a fused kernel never writes them.
- Parameters include frozen ones, but no buffers.

On the meta device nothing is computed, so any image shape takes seconds. What an
implementation recomputes to save memory (SOFT's attention in chunks of tokens) counts
once there.
"""
import contextlib
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.utils import flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from ..deploy import tensors_of

aten = torch.ops.aten
# Operators without a formula that do real work start with one of these names
UNKNOWN = ('linalg_cholesky', 'linalg_inv', 'linalg_lstsq', 'linalg_lu', 'linalg_qr',
           '_linalg_det', '_linalg_eigh', '_linalg_solve', '_linalg_svd', '_fft_',
           '_cdist', '_addmm_', '_native_multi_head', '_transformer_encoder_layer')
Shape = Sequence[int]
Run = Callable[[nn.Module, Tensor], Any]
Formulas = dict[Any, Callable[..., int]]  # of argument shapes and ``out_shape``


def attention_scores(query: Shape, key: Shape, *args: Any, **kwargs: Any) -> int:
    """Number of scores of queries (B, H, N, d) and keys (B, H, M, d)."""
    return math.prod(query[:-1]) * key[-2]


def _attention_flops(query: Shape, key: Shape, value: Shape, *args: Any,
                     **kwargs: Any) -> int:
    return 2 * attention_scores(query, key) * (query[-1] + value[-1])


def _attention_elements(query: Shape, key: Shape, value: Shape, *args: Any,
                        **kwargs: Any) -> int:
    return math.prod(query[:-1]) * (key[-2] + value[-1])


def _elements(*args: Any, out_shape: Shape, **kwargs: Any) -> int:
    return math.prod(out_shape)


ATTENTION = [getattr(aten, name) for name in (
    '_scaled_dot_product_flash_attention', '_scaled_dot_product_cudnn_attention',
    '_scaled_dot_product_efficient_attention',
    '_scaled_dot_product_flash_attention_for_cpu') if hasattr(aten, name)]
# FLOPs that PyTorch's own registry leaves out
EXTRA_FLOPS: Formulas = {
    aten.mv: lambda a, b, out_shape=None: 2 * math.prod(a),
    aten.addmv: lambda c, a, b, out_shape=None, **kwargs: 2 * math.prod(a),
    aten.dot: lambda a, b, out_shape=None: 2 * math.prod(a),
    **dict.fromkeys(ATTENTION, _attention_flops),
}
_REGISTRY: Formulas = (vars(flop_counter).get('flop_registry')
                       or vars(flop_counter)['flop_mapping'])  # in PyTorch 2.1
ELEMENTS: Formulas = {
    **dict.fromkeys([*_REGISTRY, *EXTRA_FLOPS], _elements),
    **dict.fromkeys(ATTENTION, _attention_elements),
}


@dataclass
class Cost:
    """Cost of a module for one input, summed over its calls.

    Args:
        parameters (int): Number of parameters.
        macs (int): Multiply-adds, half the FLOPs.
        activations (int): Output elements of the counted operators.
    """

    parameters: int = 0
    macs: int = 0
    activations: int = 0

    @property
    def flops(self) -> int:
        """Floating-point operations, two per multiply-add."""
        return 2 * self.macs


@dataclass
class Complexity(Cost):
    """Cost of a model and of its modules.

    Args:
        modules (dict[str, Cost]): By module name, in the model's order.
        uncounted (dict[str, int]): Number of calls by operator, for operators that do
            real work but have no formula.
    """

    modules: dict[str, Cost] = field(default_factory=dict)
    uncounted: dict[str, int] = field(default_factory=dict)


class Forward(nn.Module):
    """A model as a module from images to a tuple of tensors.

    Args:
        model (nn.Module): The model.
        run (Callable): Function that calls it with images.
        dtype (torch.dtype, optional): For mixed precision. Defaults to None, float32.
    """

    def __init__(self, model: Any, run: Run, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.model = model
        self.run = run
        self.dtype = dtype

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> all tensors of the output."""
        with torch.autocast(x.device.type, self.dtype, cache_enabled=False
                            ) if self.dtype else contextlib.nullcontext():
            return tuple(tensors_of(self.run(self.model, x)))


class _UnknownOperators(TorchDispatchMode):
    """Counts calls of operators that no formula covers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        namespace, _, name = func.name().partition('::')
        name = name.partition('.')[0]
        if namespace not in ('aten', 'prim', 'prims') or name.startswith(UNKNOWN):
            self.calls[f'{namespace}::{name}'] += 1
        return func(*args, **(kwargs or {}))


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of inputs and outputs of operators that multiply and add."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (),
                           kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket in ELEMENTS:
            # Attention also returns statistics for its backward pass
            result = out[0] if isinstance(out, tuple) else out
            for tensor in tensors_of([args, kwargs, result]):
                # A tensor that was expanded is read from less memory
                self.bytes += min(tensor.nbytes, tensor.untyped_storage().nbytes())
        return out


def call_model(model: nn.Module, x: Tensor) -> Any:
    """``model(x)``."""
    return model(x)


def count(model: nn.Module, x: Tensor, run: Run = call_model) -> Complexity:
    """Count the work of one forward pass.

    Args:
        model (nn.Module): The model. Runs in eval mode; its modes are restored.
        x (Tensor): Images, (B, C, H, W), on the device of the model. Their values do
            not matter on the meta device.
        run (Callable): Function that calls the model with ``x``. Defaults to
            ``model(x)``.

    Returns:
        Complexity: Counts for the whole batch.

    Example:
        >>> with torch.device('meta'):
        ...     layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        ...     cost = count(layer, torch.empty(1, 3, 10, 10))
        >>> cost.parameters, cost.macs, cost.activations
        (216, 21600, 800)
    """
    (flops, activations), unknown = count_operators(model, x, run, EXTRA_FLOPS,
                                                    ELEMENTS)
    modules = {
        name: Cost(sum(p.numel() for p in module.parameters()),
                   flops[name].total() // 2, activations[name].total())
        for name, module in model.named_modules()}
    total = modules.pop('')
    return Complexity(total.parameters, total.macs, total.activations, modules, unknown)


def count_bytes(model: Forward, x: Tensor) -> int:
    """Count the bytes that a forward pass has to read and write at least.

    These are inputs, weights and outputs of convolutions, linear layers and all other
    matrix products, in the data types they run in, and of fused attention its queries,
    keys, values and outputs. Everything in between could be fused with them.

    Args:
        model (Forward): In eval mode.
        x (Tensor): Images, (B, 3, H, W), on the device of the model.

    Returns:
        int: Bytes for the whole batch.
    """
    # In inference mode a linear layer would be one operator, without a formula
    with torch.no_grad(), _unfused_attention(), _Traffic() as traffic:
        model(x)
    return traffic.bytes


def count_operators(
        model: nn.Module, x: Tensor, run: Run, *formulas: Formulas
) -> tuple[list[dict[str, Counter]], dict[str, int]]:
    """Sum formulas over the operators of a forward pass, by module.

    Args:
        model (nn.Module): The model. Runs in eval mode; its modes are restored.
        x (Tensor): Images, (B, C, H, W).
        run (Callable): See :func:`count`.
        *formulas (dict): Operator of ``torch.ops.aten`` -> function of its argument
            shapes and ``out_shape``, as for `FlopCounterMode`, whose own FLOP formulas
            apply to all other operators.

    Returns:
        tuple: For each of ``formulas``, module name -> operator -> sum ('' is the whole
        model); and the calls of operators that no formula covers.
    """
    root = Forward(model, run)  # so that names of modules start at the model
    counters = [_flop_counter(root, table) for table in formulas]
    unknown = _UnknownOperators()
    training = {module: module.training for module in model.modules()}
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(_unfused_attention())
            for counter in counters:
                stack.enter_context(counter)
            stack.enter_context(unknown)
            root.eval()(x)
    finally:
        for module, mode in training.items():
            module.training = mode
    return [_by_module(model, counter) for counter in counters], dict(unknown.calls)


class _OldFlopCounter(FlopCounterMode):
    """For PyTorch before 2.4, whose own hooks make a tensor of a tuple of one."""

    parents: list[str]

    def _enter_module(self, name: str) -> Callable[..., None]:
        return lambda module, inputs: self.parents.append(name)

    def _exit_module(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, inputs: Any, outputs: Any) -> None:
            self.parents.pop()

        return leave


def _flop_counter(root: Forward, formulas: Formulas) -> FlopCounterMode:
    if digit_version(torch.__version__) < digit_version('2.4.0'):
        return _OldFlopCounter(root, display=False, custom_mapping=formulas)
    return FlopCounterMode(display=False, custom_mapping=formulas)


@contextlib.contextmanager
def _unfused_attention() -> Iterator[None]:
    """Run `nn.MultiheadAttention` as its matmuls, not as one operator."""
    switch = getattr(torch.backends, 'mha', None)
    enabled = switch is not None and switch.get_fastpath_enabled()
    if enabled:
        switch.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # PyTorch's, about formats
            yield
    finally:
        if enabled:
            switch.set_fastpath_enabled(True)


def _by_module(model: nn.Module, counter: FlopCounterMode) -> dict[str, Counter]:
    """Counts by the names of the model's modules.

    Containers, and modules used through other methods than ``forward``, have no counts
    of their own and get the sums of their children.
    """
    counts = counter.get_flop_counts()
    result = {'': Counter(counts.get('Global', {}))}
    prefix = f'{Forward.__name__}.model.'
    for name, module in reversed(list(model.named_modules())):
        if name:
            result[name] = Counter(counts.get(prefix + name)) or sum(
                (result.get(f'{name}.{child}', Counter())
                 for child, _ in module.named_children()), Counter())
    return result
