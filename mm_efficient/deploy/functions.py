"""Repeated modules as functions of an ONNX file.

A backbone of 60 unrolled blocks takes minutes to trace and to optimise. The blocks of a
stage differ in their weights only, so each kind is exported once, as a function that
takes the weights as inputs, and the graph calls it. Runtimes inline functions as they
load a file.
"""
import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..models.base import PyramidBackbone

DOMAIN = 'mm_efficient'
# Images of which modules are traced: sizes that differ between the two are dynamic, and
# those within one differ from each other, as tracers take equal ones for the same
SHAPES = (2, 256, 320), (3, 96, 160)
RATES = {'p', 'drop_prob'}  # of dropout, which does nothing in eval mode


class Function(nn.Module):
    """A module that is exported once, with its weights as inputs.

    Args:
        name (str): Name in the ONNX file.
        module (nn.Module): Returns a tensor of the shape of its only argument.
        shapes (list[torch.Size]): Shapes of the argument.
    """

    def __init__(self, name: str, module: nn.Module, shapes: list[torch.Size]):
        super().__init__()
        self.name = name
        self.shapes = shapes
        self._module = [module]  # not registered: its weights are inputs

    def forward(self, x: Tensor, weights: list[Tensor]) -> Tensor:
        """Apply the module with these weights."""
        module, = self._module
        state = dict(zip(_weights(module), weights, strict=True))
        with getattr(module, 'onnx_form', contextlib.nullcontext)():
            return torch.func.functional_call(module, state, (x, ))

    def definitions(self) -> tuple[str, ...]:
        """Functions that this one calls, as text."""
        module, = self._module
        return getattr(module, 'onnx_definitions', ())

    def arguments(self) -> tuple[Tensor, list[Tensor]]:
        """Arguments to trace :meth:`forward` with; their values do not matter."""
        module, = self._module
        shape = max(self.shapes, key=lambda shape: len(set(shape)))
        # Not the weights themselves, which are weights of the model, too
        return torch.zeros(shape), [*map(torch.zeros_like, _weights(module).values())]

    def dynamic_sizes(self) -> tuple[dict[int, Any], list[None]]:
        """Dynamic dimensions of the arguments, for ``torch.export``."""
        module, = self._module
        return ({i: torch.export.Dim.AUTO for i, sizes in enumerate(zip(*self.shapes))
                 if len(set(sizes)) > 1}, [None] * len(_weights(module)))


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

    def forward(self, image: Tensor, arguments: list[tuple[Tensor, list[Tensor]]]
                ) -> tuple[Tensor, ...]:
        """The outputs of the model, then those of the functions."""
        return (*self.model(image), *(function(*each) for function, each in zip(
            self.functions, arguments, strict=True)))


class Call(nn.Module):
    """Stands for a module where an ONNX file calls a function.

    Args:
        module (nn.Module): A module like that of the function.
        name (str): Name of the function.
    """

    def __init__(self, module: nn.Module, name: str):
        super().__init__()
        self.module = module
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        """Trace the call; its value means nothing."""
        return torch.onnx.ops.symbolic(
            f'{DOMAIN}::{self.name}', (x, *_weights(self.module).values()),
            dtype=x.dtype, shape=x.shape, version=1)


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
    shapes = _input_shapes(backbone)
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(_kind(backbone.get_submodule(name)), []).append(name)
    functions: list[Function] = []
    for names in groups.values():
        module = backbone.get_submodule(names[0])
        if len(names) == 1 and not _is_function(module):
            continue
        name = f'{type(module).__name__}_{len(functions)}'
        functions.append(Function(name, module, sum((shapes[n] for n in names), [])))
        for each in names:
            parent, _, child = each.rpartition('.')
            setattr(backbone.get_submodule(parent), child,
                    Call(backbone.get_submodule(each), name))
    return functions


def _candidates(backbone: PyramidBackbone) -> list[str]:
    """Names of modules that may become functions, inner ones first."""
    blocks = {block for stage in backbone.stages for block in stage.blocks}
    return [name for name, module in backbone.named_modules()
            if module in blocks or _is_function(module)][::-1]


def _is_function(module: nn.Module) -> bool:
    return getattr(module, 'onnx_function', False)


def _input_shapes(backbone: PyramidBackbone) -> dict[str, list[torch.Size]]:
    """Shapes of the inputs of all candidates that return a tensor of the same shape."""
    backbone = copy.deepcopy(backbone).to('meta')
    shapes: dict[str, list[torch.Size]] = {}

    def record(name: str) -> Callable:
        def hook(module: nn.Module, inputs: tuple, output: Any) -> None:
            if len(inputs) == 1 and getattr(output, 'shape', None) == inputs[0].shape:
                shapes[name].append(output.shape)
        return hook

    for name in _candidates(backbone):
        shapes[name] = []
        backbone.get_submodule(name).register_forward_hook(record(name))
    for batch_size, *size in SHAPES:
        backbone(torch.empty(batch_size, backbone.in_channels, *size, device='meta'))
    return {name: found for name, found in shapes.items() if len(found) == len(SHAPES)}


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
    header = f'<domain: "{DOMAIN}", opset_import: ["": {model.opset_imports[""]}]>'
    for text in dict.fromkeys(sum((each.definitions() for each in functions), ())):
        definition = ir.from_proto(parse_function(header + text))
        model.functions[definition.identifier()] = definition
    sizes = [1 + len(function.arguments()[1]) for function in functions]
    inputs, outputs = graph.inputs[-sum(sizes):], graph.outputs[-len(functions):]
    del graph.inputs[-sum(sizes):], graph.outputs[-len(functions):]
    for function, size, output in zip(functions, sizes, outputs, strict=True):
        body = _body(graph, inputs[:size], output)
        definition = ir.Function(DOMAIN, function.name, graph=body, attributes=())
        model.functions[definition.identifier()] = definition
        del inputs[:size]
    model.opset_imports[DOMAIN] = 1
    optimizer.remove_unused_nodes(model)


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
