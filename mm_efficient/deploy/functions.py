"""Repeated modules as functions of an ONNX file.

A backbone of 60 unrolled blocks takes minutes to trace and to optimise. The blocks of a
stage differ in their weights only, so each kind is exported once, as a function that
takes the weights as inputs, and the graph calls it. Runtimes inline functions as they
load a file.
"""
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..models.base import PyramidBackbone

DOMAIN = 'mm_efficient'
# Images of which modules are traced: sizes that differ between the two are dynamic, and
# those within one differ from each other, as tracers take equal ones for the same
SHAPES = (2, 256, 320), (3, 352, 416)
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
        return torch.func.functional_call(module, state, (x, ))

    def trace(self) -> torch.export.ExportedProgram:
        """Trace the module with dynamic sizes."""
        shape = max(self.shapes, key=lambda shape: len(set(shape)))
        dynamic = {i: torch.export.Dim.AUTO for i, sizes in enumerate(zip(*self.shapes))
                   if len(set(sizes)) > 1}
        weights = list(_weights(self._module[0]).values())
        return torch.export.export(
            self, (torch.zeros(shape), weights),
            dynamic_shapes=(dynamic, [None] * len(weights)))


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

    Args:
        model (nn.Module): Model to export, in eval mode; changed in place.

    Returns:
        list[Function]: What is called; inner functions first. Empty before torch 2.8,
        which cannot trace calls.
    """
    backbone = next((m for m in model.modules() if isinstance(m, PyramidBackbone)), None)
    if backbone is None or not hasattr(torch.onnx, 'ops'):
        return []
    shapes = _input_shapes(backbone)
    groups: dict[str, list[str]] = {}
    for name in shapes:
        groups.setdefault(_kind(backbone.get_submodule(name)), []).append(name)
    functions = []
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


def add_functions(model: Any, functions: list[tuple[str, Any]]) -> None:
    """Add the definitions of functions to an ONNX file.

    Args:
        model (onnxscript.ir.Model): Changed in place.
        functions (list[tuple[str, onnxscript.ir.Model]]): Their names, and models with
            one output, that become their bodies.
    """
    from onnxscript import ir
    for name, body in functions:
        graph = body.graph
        for value in [*graph.initializers.values()]:  # functions have constants instead
            constant = ir.Node('', 'Constant', [], [
                ir.AttrTensor('value', value.const_value)])
            constant.outputs[0].name = value.name
            ir.convenience.replace_all_uses_with(value, constant.outputs[0])
            graph.insert_before(graph[0], constant)
        graph.initializers.clear()
        for value in [*graph.inputs, *(v for node in graph for v in node.outputs)]:
            value.shape = value.type = None  # of one of many calls
        function = ir.Function(DOMAIN, name, graph=graph, attributes=())
        model.functions[function.identifier()] = function
        model.opset_imports[DOMAIN] = 1
