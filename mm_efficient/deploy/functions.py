"""Repeated modules as functions of an ONNX file.

A backbone of 60 unrolled blocks takes minutes to trace and to optimise. The blocks of a
stage differ in their weights only, so each kind is exported once, as a function that
takes the weights as inputs, and the graph calls it. Runtimes inline functions as they
load a file.
"""
import contextlib
import copy
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from ..models.base import PyramidBackbone

DOMAIN = 'mm_efficient'
# Images of which modules are traced: sizes that differ between the two are dynamic, and
# those within one differ from each other, as tracers take equal ones for the same
SHAPES = (2, 256, 320), (3, 96, 160)
Calls = dict[str, list[tuple[tuple[Tensor, ...], Tensor]]]  # inputs and output
RATES = {'p', 'drop_prob'}  # of dropout, which does nothing in eval mode


class Function(nn.Module):
    """A module that is exported once, with its weights as inputs.

    Args:
        name (str): Name in the ONNX file.
        module (nn.Module): Takes tensors and returns one.
        shapes (list[list[torch.Size]]): Shapes of the tensors, in several calls.
    """

    def __init__(self, name: str, module: nn.Module, shapes: list[list[torch.Size]]):
        super().__init__()
        self.name = name
        self.shapes = shapes
        self._module = [module]  # not registered: its weights are inputs

    def forward(self, inputs: list[Tensor], weights: list[Tensor]) -> Tensor:
        """Apply the module with these weights."""
        module, = self._module
        state = dict(zip(_weights(module), weights, strict=True))
        with getattr(module, 'onnx_form', contextlib.nullcontext)():
            return torch.func.functional_call(module, state, tuple(inputs))

    def definitions(self) -> tuple[str, ...]:
        """Functions that this one calls, as text."""
        module, = self._module
        return getattr(module, 'onnx_definitions', ())

    def arguments(self) -> tuple[list[Tensor], list[Tensor]]:
        """Arguments to trace :meth:`forward` with; their values do not matter."""
        module, = self._module
        shapes = max(self.shapes, key=lambda shapes: len({*chain(*shapes)}))
        # Not the weights themselves, which are weights of the model, too
        return ([*map(torch.zeros, shapes)],
                [*map(torch.zeros_like, _weights(module).values())])

    def dynamic_sizes(self) -> tuple[list[dict[int, Any]], list[None]]:
        """Dynamic dimensions of the arguments, for ``torch.export``."""
        module, = self._module
        return ([{i: torch.export.Dim.AUTO for i, sizes in enumerate(zip(*shapes))
                  if len(set(sizes)) > 1} for shapes in zip(*self.shapes)],
                [None] * len(_weights(module)))


class Library(nn.Module):
    """A model, and beside it the functions that it calls.

    PyTorch's exporter takes a second or two to start, so it runs once for all.

    Args:
        model (nn.Module): Takes images and returns a tuple of tensors.
        functions (Sequence[Function]): Functions.
    """

    def __init__(self, model: nn.Module, functions: Sequence[Function]):
        super().__init__()
        self.model = model
        self.functions = nn.ModuleList(functions)

    def forward(self, image: Tensor,
                arguments: list[tuple[list[Tensor], list[Tensor]]]
                ) -> tuple[Tensor, ...]:
        """The outputs of the model, then those of the functions."""
        return (*self.model(image), *(function(*each) for function, each in zip(
            self.functions, arguments, strict=True)))


class Call(nn.Module):
    """Stands for modules where an ONNX file calls a function.

    Args:
        modules (Sequence[nn.Module]): Modules like that of the function, each of which
            takes the output of the one before. They are one call while tracing, which
            :func:`define_functions` splits.
        name (str): Name of the function.
        sizes (list[tuple[int, int]]): Where the sizes of the output come from: which
            dimension of which input.
    """

    def __init__(self, modules: Sequence[nn.Module], name: str,
                 sizes: list[tuple[int, int]]):
        super().__init__()
        self.called = nn.ModuleList(modules)
        self.name = name
        self.sizes = sizes

    def forward(self, *inputs: Tensor) -> Tensor:
        """Trace the call; its value means nothing."""
        weights = [_weights(module).values() for module in self.called]
        shape = [inputs[i].shape[dim] for i, dim in self.sizes]
        return torch.onnx.ops.symbolic(
            f'{DOMAIN}::{self.name}', (*inputs, *chain(*weights)),
            dtype=inputs[0].dtype, shape=shape, version=1)


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def split_functions(model: nn.Module) -> list[Function]:
    """Replace modules of our backbones by calls.

    These are blocks like others, and modules with a true attribute ``onnx_function``.
    Such a module may have ``onnx_form``, a function that returns the context to trace
    it in, and ``onnx_definitions``, texts of the functions that it calls there.

    Args:
        model (nn.Module): Model to export, in eval mode; changed in place.

    Returns:
        list[Function]: What is called; inner functions first. Empty before torch 2.8,
        which cannot trace calls.
    """
    backbones = [m for m in model.modules() if isinstance(m, PyramidBackbone)]
    if not backbones or not hasattr(getattr(torch.onnx, 'ops', None), 'symbolic'):
        return []
    backbone = backbones[0]
    calls = _record_calls(backbone)
    groups: dict[str, list[str]] = {}
    for name in calls:
        groups.setdefault(_kind(backbone.get_submodule(name)), []).append(name)
    functions: list[Function] = []
    for names in groups.values():
        module = backbone.get_submodule(names[0])
        if len(names) == 1 and not _is_function(module):
            continue
        name = f'{type(module).__name__}_{len(functions)}'
        functions.append(Function(name, module, [
            [x.shape for x in inputs] for each in names for inputs, _ in calls[each]]))
        for first, *others in _chains(names, calls):
            called = [backbone.get_submodule(each) for each in (first, *others)]
            _replace(backbone, first, Call(called, name, _sizes(calls[first])))
            for each in others:
                _replace(backbone, each, nn.Identity())
    return functions


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition('.')
    setattr(model.get_submodule(parent), child, module)


def _candidates(backbone: PyramidBackbone) -> list[str]:
    """Names of modules that may become functions, inner ones first."""
    blocks = {block for stage in backbone.stages for block in stage.blocks}
    return [name for name, module in backbone.named_modules()
            if module in blocks or _is_function(module)][::-1]


def _is_function(module: nn.Module) -> bool:
    return getattr(module, 'onnx_function', False)


def _record_calls(backbone: PyramidBackbone) -> Calls:
    """Calls of all candidates that take tensors and return one."""
    backbone = copy.deepcopy(backbone).to('meta')
    calls: Calls = {}

    def record(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if all(isinstance(x, Tensor) for x in (*inputs, output)):
                calls[name].append((inputs, output))
        return hook

    for name in _candidates(backbone):
        calls[name] = []
        backbone.get_submodule(name).register_forward_hook(record(name))
    for batch_size, *size in SHAPES:
        backbone(torch.empty(batch_size, backbone.in_channels, *size, device='meta'))
    return {name: found for name, found in calls.items()
            if len(found) == len(SHAPES) and _sizes(found)}


def _sizes(calls: list[tuple[tuple[Tensor, ...], Tensor]]) -> list[tuple[int, int]]:
    """Input and dimension that each size of the output comes from, if all do."""
    inputs, output = calls[0]
    sizes = []
    for k in range(output.dim()):
        source = next(((i, dim) for i, x in enumerate(inputs) for dim in range(x.dim())
                       if all(xs[i].shape[dim] == y.shape[k] for xs, y in calls)), None)
        if source is None:
            return []
        sizes.append(source)
    return sizes


def _chains(names: Sequence[str], calls: Calls) -> list[list[str]]:
    """Group modules, given last to first, that take the output of the one before."""
    chains: list[list[str]] = []
    end = None
    for name in names[::-1]:
        (x, *others), output = calls[name][0]
        if x is end and not others and x.shape == output.shape:
            chains[-1].append(name)
        else:
            chains.append([name])
        end = output
    return chains


def _kind(module: nn.Module) -> str:
    """Equal for modules that differ in their weights only."""
    parts = [
        (name, type(part), {key: value for key, value in vars(part).items()
                            if not key.startswith('_') and key not in RATES})
        for name, part in module.named_modules()]
    return repr((parts, [(name, weight.shape, weight.dtype)
                         for name, weight in _weights(module).items()]))


def define_functions(model: Any, functions: Sequence[Function]) -> None:
    """Turn what was exported beside a model into the functions that it calls.

    Args:
        model (onnxscript.ir.Model): ONNX of a :class:`Library`, changed in place.
        functions (Sequence[Function]): Its functions.
    """
    from onnx.parser import parse_function
    from onnxscript import ir, optimizer
    graph = model.graph
    definition: Any
    header = f'<domain: "{DOMAIN}", opset_import: ["": {model.opset_imports[""]}]>'
    for text in dict.fromkeys(sum((each.definitions() for each in functions), ())):
        definition = ir.from_proto(parse_function(header + text))
        model.functions[definition.identifier()] = definition
    counts = {each.name: [*map(len, each.arguments())] for each in functions}
    _split_calls(graph, counts)
    sizes = [*map(sum, counts.values())]
    inputs, outputs = graph.inputs[-sum(sizes):], graph.outputs[-len(functions):]
    del graph.inputs[-sum(sizes):], graph.outputs[-len(functions):]
    for function, size, output in zip(functions, sizes, outputs, strict=True):
        body = _body(graph, inputs[:size], output)
        definition = ir.Function(DOMAIN, function.name, graph=body, attributes=())
        model.functions[definition.identifier()] = definition
        del inputs[:size]
    model.opset_imports[DOMAIN] = 1
    optimizer.remove_unused_nodes(model)


def _split_calls(graph: Any, counts: dict[str, list[int]]) -> None:
    """Replace calls that stand for several by these."""
    from onnxscript import ir
    for node in [*graph]:
        if node.domain != DOMAIN or node.op_type not in counts:
            continue
        num_inputs, num_weights = counts[node.op_type]
        inputs, weights = node.inputs[:num_inputs], node.inputs[num_inputs:]
        if len(weights) == num_weights:
            continue
        calls = []
        for i in range(0, len(weights), num_weights):
            calls.append(ir.Node(
                DOMAIN, node.op_type, [*inputs, *weights[i:i + num_weights]],
                name=f'{node.name}_{i // num_weights}'))
            inputs = calls[-1].outputs
        ir.convenience.replace_nodes_and_values(
            graph, node, [node], calls, node.outputs, inputs)


def _body(graph: Any, inputs: Sequence[Any], output: Any) -> Any:
    """Copy of the part of a graph that leads from inputs to an output."""
    from onnxscript import ir
    needed, nodes = {output}, []
    for node in reversed(graph):
        if not needed.isdisjoint(node.outputs):
            nodes.append(node)
            needed.update(value for value in node.inputs if value is not None)
    # Without shapes, which are those of one of many calls
    values = {value: ir.Value(name=value.name) for value in inputs}
    copies = []
    for value in needed & {*graph.initializers.values()}:  # functions have constants
        copies.append(ir.Node('', 'Constant', [], [
            ir.AttrTensor('value', value.const_value)]))
        values[value], = copies[-1].outputs
    for node in nodes[::-1]:
        copies.append(ir.Node(
            node.domain, node.op_type,
            [value and values[value] for value in node.inputs],
            node.attributes.values(), num_outputs=len(node.outputs)))
        values.update(zip(node.outputs, copies[-1].outputs))
    for i, value in enumerate(value for node in copies for value in node.outputs):
        value.name = f'value_{i}'
    return ir.Graph([values[value] for value in inputs], [values[output]], nodes=copies,
                    opset_imports={**graph.opset_imports, DOMAIN: 1})
