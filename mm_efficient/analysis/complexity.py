"""Parameters, multiply-adds and activations of a model, by module.

Counted where operators are dispatched, with PyTorch's `FlopCounterMode`, so that
products inside functions (attention, einsum, the landmark inverse of SOFT) are seen
as well as those of layers. What is counted:

- MACs: multiply-adds of convolutions, linear layers and every other matrix product.
  One MAC is two FLOPs. What works element by element (norms, activations, softmax,
  residuals, pooling, resizing, sampling of regions) is not counted, nor are biases.
- Activations: elements of the results of the same operators; of attention the scores
  as well, also where a fused kernel never writes them.
- Parameters, frozen ones included; buffers are none.

On the meta device nothing is computed and any image size takes seconds. What an
implementation computes twice to save memory elsewhere (SOFT's attention in chunks of
tokens) is then counted once.
"""
import contextlib
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

aten = torch.ops.aten
# Beginnings of the names of operators that are work without a formula
UNKNOWN = ('linalg_cholesky', 'linalg_inv', 'linalg_lstsq', 'linalg_lu', 'linalg_qr',
           '_linalg_det', '_linalg_eigh', '_linalg_solve', '_linalg_svd', '_fft_',
           '_cdist', '_addmm_', '_native_multi_head', '_transformer_encoder_layer')


def _attention_flops(query, key, value, *args, out_shape=None, **kwargs):
    """(B, H, N, d), (B, H, M, d), (B, H, M, e): scores, then their product."""
    scores = math.prod(query[:-1]) * key[-2]
    return 2 * scores * (query[-1] + value[-1])


def _attention_elements(query, key, value, *args, out_shape=None, **kwargs):
    return math.prod(query[:-1]) * (key[-2] + value[-1])


def _elements(*args, out_shape=None, **kwargs):
    return math.prod(out_shape)


ATTENTION = [getattr(aten, name) for name in (
    '_scaled_dot_product_flash_attention', '_scaled_dot_product_cudnn_attention',
    '_scaled_dot_product_efficient_attention',
    '_scaled_dot_product_flash_attention_for_cpu') if hasattr(aten, name)]
# What PyTorch's own table of formulas leaves out, in FLOPs
EXTRA_FLOPS = {
    aten.mv: lambda a, b, out_shape=None: 2 * math.prod(a),
    aten.addmv: lambda c, a, b, out_shape=None, **kwargs: 2 * math.prod(a),
    aten.dot: lambda a, b, out_shape=None: 2 * math.prod(a),
    **dict.fromkeys(ATTENTION, _attention_flops),
}
ELEMENTS = {
    **dict.fromkeys([*flop_registry, *EXTRA_FLOPS], _elements),
    **dict.fromkeys(ATTENTION, _attention_elements),
}


@dataclass
class Cost:
    """Cost of a module for one input, of all its calls together.

    Args:
        parameters (int): Number of parameters.
        macs (int): Multiply-adds, half of the FLOPs.
        activations (int): Elements of the results of counted operators.
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
        modules (dict[str, Cost]): By name in the model, in its order.
        uncounted (dict[str, int]): Calls of operators that may well be work but for
            which there is no formula, by name.
    """
    modules: dict[str, Cost] = field(default_factory=dict)
    uncounted: dict[str, int] = field(default_factory=dict)


class _Run(nn.Module):
    """Gives modules the names they have in the model, whatever is called first."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module, Tensor], Any]):
        super().__init__()
        self.model = model
        self.run = run

    def forward(self, x: Tensor):
        return self.run(self.model, x)


class _Unknown(torch.utils._python_dispatch.TorchDispatchMode):
    """Counts the calls of operators that no formula covers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        namespace, _, name = func.name().partition('::')
        name = name.partition('.')[0]
        if namespace not in ('aten', 'prim', 'prims') or name.startswith(UNKNOWN):
            name = f'{namespace}::{name}'
            self.calls[name] = self.calls.get(name, 0) + 1
        return func(*args, **(kwargs or {}))


def count(model: nn.Module, x: Tensor,
          run: Callable[[nn.Module, Tensor], Any] | None = None) -> Complexity:
    """Count what a model does with an input.

    Args:
        model (nn.Module): The model, used in eval mode and left as it was.
        x (Tensor): Images, (B, C, H, W), on the device of the model; its values do
            not matter on the meta device.
        run (Callable, optional): Calls the model with ``x``; given if that is not
            ``model(x)``. Defaults to None.

    Returns:
        Complexity: Of the whole batch.

    Example:
        >>> with torch.device('meta'):
        ...     layer = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        ...     cost = count(layer, torch.empty(1, 3, 10, 10))
        >>> cost.parameters, cost.macs, cost.activations
        (216, 21600, 800)
    """
    macs, activations, unknown = count_operators(
        model, x, run, EXTRA_FLOPS, ELEMENTS)
    modules = {}
    for name, module in model.named_modules():
        modules[name] = Cost(
            sum(p.numel() for p in module.parameters()),
            sum(macs[name].values()) // 2, sum(activations[name].values()))
    total = modules.pop('')
    return Complexity(total.parameters, total.macs, total.activations, modules, unknown)


def count_operators(model: nn.Module, x: Tensor,
                    run: Callable[[nn.Module, Tensor], Any] | None,
                    *formulas: dict) -> list[dict]:
    """Sums of formulas over the operators of a forward pass, by module.

    Args:
        model (nn.Module): The model, used in eval mode and left as it was.
        x (Tensor): Images, (B, C, H, W).
        run (Callable, optional): See :func:`count`.
        *formulas (dict): Operator of ``torch.ops.aten`` to function of the shapes
            of its arguments and ``out_shape``, as of `FlopCounterMode`, whose own
            formulas for FLOPs apply to operators that are not given.

    Returns:
        list[dict]: For every argument of ``formulas`` the sums, module name ->
        operator -> number ('' is the model); then the calls of operators that no
        formula covers.
    """
    runner = _Run(model, run or (lambda model, x: model(x)))
    counters = [_counter(runner, table) for table in formulas]
    unknown = _Unknown()
    training = {module: module.training for module in model.modules()}
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [setattr(module, 'training', mode)
                                for module, mode in training.items()])
        stack.enter_context(torch.no_grad())
        stack.enter_context(_composed_attention())
        for mode in (*counters, unknown):
            stack.enter_context(mode)
        runner.eval()(x)
    return [*(_by_module(model, counter) for counter in counters), unknown.calls]


def _counter(runner: _Run, formulas: dict) -> FlopCounterMode:
    if digit_version(torch.__version__) < digit_version('2.4.0'):
        return FlopCounterMode(runner, display=False, custom_mapping=formulas)
    return FlopCounterMode(display=False, custom_mapping=formulas)


@contextlib.contextmanager
def _composed_attention():
    """`nn.MultiheadAttention` as the products it consists of, not one operator."""
    switch = getattr(torch.backends, 'mha', None)
    enabled = switch is not None and switch.get_fastpath_enabled()
    if enabled:
        switch.set_fastpath_enabled(False)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # PyTorch's, on formats
            yield
    finally:
        if enabled:
            switch.set_fastpath_enabled(True)


def _by_module(model: nn.Module, counter: FlopCounterMode) -> dict[str, dict]:
    """Counts under the names of the model's modules.

    Containers, and modules of which other methods than ``forward`` are called, have
    none of their own: they get the sums of their children.
    """
    counts = counter.get_flop_counts()
    result = {'': counts.get('Global', {})}
    prefix = f'{_Run.__name__}.model.'
    for name, module in reversed(list(model.named_modules())):
        if not name:
            continue
        result[name] = counts.get(prefix + name) or _sum(
            result.get(f'{name}.{child}', {}) for child, _ in module.named_children())
    return result


def _sum(counts) -> dict:
    total = {}
    for operators in counts:
        for operator, number in operators.items():
            total[operator] = total.get(operator, 0) + number
    return total
