"""Fusing for inference: the same function with fewer operators.

First every module that knows how to simplify itself does so, by its method
``switch_to_deploy()``, OpenMMLab's convention. Then batch norms are folded into
neighbouring convolutions and linear layers. Which are neighbours is not read off the
code of the model but observed in one pass, so it works for any model.

Norms that take their statistics from their input (layer norm, group norm) cannot be
folded; their scales and biases could, but cost nothing that can be measured.
EcoFormer has nothing to fuse: it has no batch norms, and any other rounding before the
signs of its hash functions would flip bits of the codes.
"""
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode

from ..errors import InputError

INPUT_NORMS = (nn.LayerNorm, nn.GroupNorm, nn.InstanceNorm1d, nn.InstanceNorm2d)
# What may differ by rounding, relative to the largest magnitude, in units of the last
# place: after one folding, and of the whole model
LAYER_TOLERANCE = 1e3
MODEL_TOLERANCE = 1e4
# Methods of tensors that do not look at values
METADATA = {'__len__', 'dim', 'is_contiguous', 'is_floating_point', 'numel', 'size',
            'stride'}


class Row(NamedTuple):
    """A module of a report.

    Args:
        name (str): Its name in the model.
        kind (str): Its class.
        result (str): What it was folded into, or why it is left.
    """
    name: str
    kind: str
    result: str


@dataclass
class FusionReport:
    """What was done to a model.

    Args:
        converted (list[Row]): Modules that simplified themselves.
        folded (list[Row]): Batch norms that are gone.
        left (list[Row]): Norms that are still there; those that cannot be folded are
            in one row per class, with their number as name.
        deviation (float): Largest difference of an output on the given images, over
            the largest magnitude of that output.
        parameters (tuple[int, int]): Number of parameters before and after.
    """
    converted: list[Row]
    folded: list[Row]
    left: list[Row]
    deviation: float
    parameters: tuple[int, int]

    def __str__(self) -> str:
        before, after = self.parameters
        rows = [*self.converted, *self.folded, *self.left]
        return '\n'.join([
            *(f'{row.name} ({row.kind}): {row.result}' for row in rows),
            f'{before / 1e6:.3f} M parameters before, {after / 1e6:.3f} M after; '
            f'outputs deviate by {self.deviation:.0e} of the largest'])


@torch.backends.cudnn.flags(enabled=True, allow_tf32=False)  # checks are exact
@torch.inference_mode(False)
@torch.no_grad()
def fuse(model: nn.Module, x: Tensor,
         run: Callable[[nn.Module, Tensor], Any] | None = None) -> FusionReport:
    """Fuse a model for inference, in place.

    Outputs stay the same up to rounding, which is checked. It is for inference only.

    Args:
        model (nn.Module): Any model.
        x (Tensor): One small image, (1, 3, H, W), on its device.
        run (Callable, optional): Calls the model with ``x`` and returns tensors,
            possibly nested. Defaults to None, ``model(x)``.

    Returns:
        FusionReport: What was folded, and what was not.

    Raises:
        InputError: If outputs are not finite or change by more than rounding, after
            which the model is not to be used, or if there are none.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        >>> fuse(model, torch.rand(1, 3, 8, 8)).folded
        [Row(name='1', kind='BatchNorm2d', result='0')]
    """
    model.eval()
    run = run or (lambda model, x: model(x))
    x = x.clone()  # one made in inference mode would not tell its changes
    parameters = _num_parameters(model)
    reference = tensors_of(run(model, x))
    if not reference:
        raise InputError(f'{type(model).__name__} gives no tensors to check fusing by; '
                         'fuse its parts, such as its backbone.')
    if not all(tensor.isfinite().all() for tensor in reference):
        raise InputError(f'{type(model).__name__} gives NaN or infinity for this '
                         'image, nothing can be compared; expected weights that '
                         'are trained, or else batch norms with the statistics of '
                         'images (mm_efficient.deploy.randomize).')
    converted = _switch_to_deploy(model)
    flow = DataFlow(model)
    _compare(flow.observe(lambda: run(model, x)), reference, 'switch_to_deploy()')
    rows = _fold_norms(model, flow)
    deviation = _compare(tensors_of(run(model, x)), reference, 'folding batch norms')
    return FusionReport(converted, *rows, deviation,
                        (parameters, _num_parameters(model)))


def tensors_of(value: Any) -> list[Tensor]:
    """All tensors in nested lists, tuples and dicts, in their order.

    Args:
        value (Any): Output of a model, say.

    Returns:
        list[Tensor]: Flat; empty if there is none.
    """
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        value = value.values()
    elif not isinstance(value, (list, tuple)):
        return []
    return [tensor for item in value for tensor in tensors_of(item)]


def relative_error(y: Tensor, reference: Tensor) -> float:
    """Largest difference, over the largest magnitude of the reference.

    Args:
        y (Tensor): Any tensor.
        reference (Tensor): Of the same shape.

    Returns:
        float: Not negative; NaN if something is not finite.
    """
    if not reference.numel():
        return 0.
    largest = reference.abs().max().clamp(min=torch.finfo(reference.dtype).tiny)
    return ((y.to(reference) - reference).abs().max() / largest).item()


def _num_parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def _compare(outputs: Sequence[Tensor], reference: Sequence[Tensor], step: str
             ) -> float:
    """Largest error of an output, which has to be rounding."""
    worst = 0.
    for i, (y, z) in enumerate(zip(outputs, reference, strict=True)):
        if not z.is_floating_point():
            continue
        error = relative_error(y, z)
        if not error <= MODEL_TOLERANCE * torch.finfo(z.dtype).eps:
            raise InputError(
                f'{step} changes output {i} of {len(outputs)} by {error:.1e} of its '
                'largest magnitude, expected rounding alone; use the model as it is, '
                'and please report it.')
        worst = max(worst, error)
    return worst


def _switch_to_deploy(model: nn.Module, name: str = '') -> list[Row]:
    """Let modules simplify themselves: the outermost, each converts what is inside."""
    if hasattr(model, 'switch_to_deploy'):
        model.switch_to_deploy()
        model.eval()  # of its new parts
        return [Row(name, type(model).__name__, 'switch_to_deploy()')]
    return [row for child_name, child in model.named_children()
            for row in _switch_to_deploy(child, f'{name}.{child_name}'.lstrip('.'))]


# ------------------------------------------------------------------- observing


class Call(NamedTuple):
    """A call of a layer with one tensor.

    Args:
        input (Tensor): What it got.
        output (Tensor): What it returned.
        version (int): How often the input had been changed in place by then.
    """
    input: Tensor
    output: Tensor
    version: int


class DataFlow(TorchFunctionMode):
    """What layers give to one another in a pass, and who else uses it.

    Tensors are told apart by identity. All outputs of layers are kept, so that none
    takes the place of another.

    Args:
        model (nn.Module): The model; its convolutions, linear layers and batch norms
            are observed.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.calls: dict[nn.Module, list[Call | None]] = {}  # None: other arguments
        self.producers: dict[int, nn.Module] = {}  # by id of a tensor
        self.consumers: dict[int, nn.Module] = {}
        # Of weights: beside those by their own layer
        self.uses = {id(parameter): 0 for parameter in model.parameters()}
        self.inside = 0  # the layers that are being called

    def observe(self, call: Callable[[], Any]) -> list[Tensor]:
        """Observe a pass.

        Args:
            call (Callable): Runs the model.

        Returns:
            list[Tensor]: The tensors it returned.
        """
        hooks = []
        for layer in self.model.modules():
            if isinstance(layer, (_ConvNd, nn.Linear, _BatchNorm)):
                hooks += [
                    layer.register_forward_pre_hook(self._enter, with_kwargs=True),
                    layer.register_forward_hook(self._leave)]
        try:
            with self:
                outputs = tensors_of(call())
        finally:
            for hook in hooks:
                hook.remove()
        self._use(outputs)
        return outputs

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tracked = [] if self.inside else [
            (tensor, tensor._version) for tensor in tensors_of([*args, kwargs])
            if id(tensor) in self.uses]
        result = func(*args, **kwargs)
        name = getattr(func, '__name__', '')
        if name in METADATA or name == '__get__' and not isinstance(result, Tensor):
            return result
        for tensor, version in tracked:
            # What returns its input as it is, such as dropout here, does nothing
            if result is not tensor or tensor._version != version:
                self.uses[id(tensor)] += 1
        return result

    def _use(self, value: Any) -> None:
        for tensor in tensors_of(value):
            if id(tensor) in self.uses:
                self.uses[id(tensor)] += 1

    def _enter(self, layer: nn.Module, args: tuple, kwargs: dict) -> None:
        if not self.inside:
            self._use([*args, kwargs])
        self.inside += 1

    def _leave(self, layer: nn.Module, args: tuple, output: Any) -> None:
        self.inside -= 1
        if self.inside:
            return
        calls = self.calls.setdefault(layer, [])
        if len(args) != 1 or not isinstance(output, Tensor):
            calls.append(None)
            return
        calls.append(Call(args[0], output, args[0]._version))
        self.uses.setdefault(id(output), 0)
        self.producers[id(output)] = layer
        self.consumers[id(args[0])] = layer

    def only_call(self, layer: nn.Module) -> Call | None:
        """The call of a layer that is called once, with nothing but a tensor."""
        calls = self.calls.get(layer, [])
        return calls[0] if len(calls) == 1 else None

    def obstacle(self, layer: nn.Module | None, between: Tensor) -> str:
        """Why a norm next to a layer cannot be folded into it.

        Args:
            layer (nn.Module, optional): The layer.
            between (Tensor): What one gives to the other.

        Returns:
            str: A few words; empty if it can.
        """
        if not isinstance(layer, (_ConvNd, nn.Linear)):
            return 'no convolution'
        weight = layer._parameters.get('weight')  # not one that is computed
        if self.uses[id(between)] > 1:
            return 'used elsewhere as well'
        if self.only_call(layer) is None:
            return 'a convolution that is called several times'
        if weight is None or self.uses.get(id(weight)):  # fused ones are new
            return 'a convolution whose weight is not its own'
        if isinstance(layer, nn.Linear) and between.ndim != 2:
            return 'a linear layer of other channels'
        return ''


# --------------------------------------------------------------------- folding


def _fold_norms(model: nn.Module, flow: DataFlow) -> tuple[list[Row], list[Row]]:
    """Fold all batch norms that can be, and tell about all norms."""
    names = {module: name for name, module in model.named_modules()}
    folded, left = [], []
    for norm, name in names.items():
        if not isinstance(norm, _BatchNorm):
            continue
        layer, reason = _fold(norm, flow)
        if layer is None:
            left.append(Row(name, type(norm).__name__, reason))
            continue
        folded.append(Row(name, type(norm).__name__, names[layer]))
        rest = _rest(norm)
        for parent in names:
            for child_name, child in list(parent.named_children()):
                if child is norm:
                    setattr(parent, child_name, rest)
    kinds = Counter(type(module).__name__ for module in names
                    if isinstance(module, INPUT_NORMS))
    left += [Row(f'({number} modules)', kind, 'its statistics are of its input')
             for kind, number in kinds.items()]
    return folded, left


def _rest(norm: _BatchNorm) -> nn.Module:
    """What a batch norm does beside it."""
    if isinstance(norm, BatchNormAct2d):
        return nn.Sequential(norm.drop, norm.act).eval()
    return nn.Identity().eval()


def _fold(norm: _BatchNorm, flow: DataFlow) -> tuple[nn.Module | None, str]:
    """Fold a batch norm into the layer before it, or else into the one behind.

    Returns:
        tuple[nn.Module | None, str]: The layer, or None and why there is none.
    """
    call = flow.only_call(norm)
    if call is None:
        calls = flow.calls.get(norm, [])
        return None, ('not used in this pass' if not calls else 'called several times'
                      if len(calls) > 1 else 'called with more than a tensor')
    if norm.running_mean is None:
        return None, 'its statistics are of its input'
    before = flow.producers.get(id(call.input))
    reason = flow.obstacle(before, call.input) or _fold_back(norm, before, flow)
    if not reason:
        return before, ''
    behind = flow.consumers.get(id(call.output))
    other_reason = (flow.obstacle(behind, call.output)
                    or _fold_forward(norm, behind, call))
    if not other_reason:
        return behind, ''
    return None, f'before: {reason}; behind: {other_reason}'


def _fold_back(norm: _BatchNorm, layer: nn.Module, flow: DataFlow) -> str:
    """Fold into the layer before; returns what is in the way."""
    transposed = isinstance(layer, _ConvTransposeNd)
    if transposed and layer.groups > 1:
        return 'a grouped transposed convolution'
    fused = fuse_conv_bn_eval(layer, norm, transposed)  # suits linear layers too
    rest = _rest(norm)
    return _replace(layer, fused, lambda x: norm(layer(x)), lambda x: rest(layer(x)),
                    flow.only_call(layer).input)


def _fold_forward(norm: _BatchNorm, layer: nn.Module, call: Call) -> str:
    """Fold into the layer behind; returns what is in the way."""
    if isinstance(layer, _ConvNd):
        plain = {*layer.kernel_size, layer.groups} == {1} and not any(
            layer.padding) and not isinstance(layer, _ConvTransposeNd)
        if not plain:  # padding is zero behind the norm, not before it
            return 'a convolution that is padded, or of several pixels'
    if call.input._version != call.version:
        return 'its input is changed in place by then'
    if type(_rest(norm)) is not nn.Identity:
        return 'an activation'
    weight = layer.weight.flatten(1)  # (C_out, C_in)
    scale, shift = fuse_conv_bn_weights(
        torch.ones_like(norm.running_mean)[:, None], None, norm.running_mean,
        norm.running_var, norm.eps, norm.weight, norm.bias)
    bias = weight @ shift.to(weight)
    fused = nn.Module()
    fused.weight = nn.Parameter((weight * scale.flatten()).view_as(layer.weight))
    fused.bias = nn.Parameter(bias if layer.bias is None else layer.bias + bias)
    return _replace(layer, fused, lambda x: layer(norm(x)), layer, call.input)


def _replace(layer: nn.Module, fused: nn.Module, before: Callable[[Tensor], Tensor],
             after: Callable[[Tensor], Tensor], like: Tensor) -> str:
    """Give a layer fused parameters if it then computes what it did with its norm.

    It does not if its class computes more from the weight than a convolution.
    """
    generator = torch.Generator().manual_seed(0)
    probe = torch.randn(like.shape, generator=generator).to(like)
    expected = before(probe)
    kept = layer.weight, layer.bias
    layer.weight, layer.bias = fused.weight, fused.bias
    error = relative_error(after(probe), expected)
    if error <= LAYER_TOLERANCE * torch.finfo(expected.dtype).eps:
        return ''
    layer.weight, layer.bias = kept
    return f'{type(layer).__name__}, which is more than a convolution'
