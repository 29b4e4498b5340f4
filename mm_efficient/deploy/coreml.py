"""Export to Core ML, as an ML program for iOS 15, macOS 12 and later.

Core ML runs on Apple systems only. Elsewhere a package can be written and read back but
not run. Compare it with PyTorch on a Mac by
``coremltools.models.MLModel(path).predict({'input': x.numpy()})``.
"""
import logging
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError, explain


def export_coreml(model: nn.Module, x: Tensor, path: str | Path, *,
                  output_names: Sequence[str], input_name: str = 'input',
                  fp16: bool = False) -> None:
    """Write a model as a Core ML package for images of one shape.

    The package is read back to check its inputs, outputs and weights, but not run; see
    the module. In float32 it runs on CPU and GPU; the Neural Engine needs ``fp16``.

    Args:
        model (nn.Module): Takes images (B, C, H, W) and returns a tuple of tensors; in
            eval mode.
        x (Tensor): An image, of which only the shape matters.
        path (str | Path): Package to write, a folder. It is written completely or not
            at all, and replaces an existing package.
        output_names (Sequence[str]): One name per output.
        input_name (str): Name of the input. Defaults to 'input'.
        fp16 (bool): Store weights and compute in float16. Inputs and outputs remain
            float32. Defaults to False.

    Raises:
        InputError: If ``path`` exists and is not a package, the model needs float32, or
            its weights are not finite.
        ExecutionError: If coremltools cannot convert the model.
    """
    path = Path(path)
    if path.exists() and not (path / 'Manifest.json').is_file():
        raise InputError(f'{path} exists and is not a Core ML package; move it away or '
                         'choose another name.')
    if fp16:
        _check_fp16(model)
    logging.getLogger('coremltools').setLevel(logging.ERROR)  # warns outside macOS
    package = _convert(model, x.contiguous(), output_names, input_name, fp16)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.coreml-') as folder:
        draft = Path(folder) / path.name
        package.save(str(draft))
        _check_package(draft, {input_name}, set(output_names))
        if path.exists():
            os.replace(path, Path(folder) / 'replaced')
        os.replace(draft, path)


def _check_fp16(model: nn.Module) -> None:
    for module in model.modules():
        if getattr(module, 'float32_only', False):
            raise InputError(f'{type(module).__name__} exceeds the range of float16; '
                             'export this model in float32.')


def _convert(model: nn.Module, x: Tensor, output_names: Sequence[str],
             input_name: str, fp16: bool) -> Any:
    """Convert to a ``coremltools.models.MLModel``."""
    import coremltools as ct
    with explain('the model cannot be exported to Core ML',
                 'Export it to ONNX, or only its backbone to Core ML.'):
        with torch.no_grad():
            program = torch.export.export(model, (x, ))
            program = program.run_decompositions(_decompositions())
        return ct.convert(
            program,
            convert_to='mlprogram',
            inputs=[ct.TensorType(input_name, tuple(x.shape))],
            outputs=[ct.TensorType(name) for name in output_names],
            minimum_deployment_target=ct.target.iOS15,
            compute_precision=ct.precision.FLOAT16 if fp16 else ct.precision.FLOAT32,
            skip_model_load=True)


def _check_package(path: Path, inputs: set[str], outputs: set[str]) -> None:
    """Read a package back and check its names, and that its weights are finite."""
    import coremltools as ct
    package = ct.models.MLModel(str(path), skip_model_load=True)
    spec = package.get_spec()
    description = spec.description
    found = ({i.name for i in description.input}, {o.name for o in description.output})
    if found != (inputs, outputs):
        raise InputError(f'Core ML names inputs and outputs {found}, expected '
                         f'{(inputs, outputs)}; choose names of letters and digits.')
    program = ct.converters.mil.frontend.milproto.load.load(
        spec, spec.specificationVersion, package.weights_dir)
    for operation in program.functions['main'].operations:
        value: Any = operation.outputs[0].val if operation.op_type == 'const' else None
        if np.ndim(value) and np.issubdtype(value.dtype, np.floating) and not (
                np.isfinite(value).all()):
            raise InputError(f'the weight {operation.name} has infinite or NaN values; '
                             'check the checkpoint, or export in float32.')


# ------------------------------------------- operators that coremltools cannot convert


def _decompositions() -> dict[Any, Callable]:
    """Numerically equal replacements for operators."""
    aten = torch.ops.aten
    return {
        aten.addcmul.default: _addcmul,
        aten.alias.default: _alias,
        aten.baddbmm.default: _baddbmm,
        aten.gelu.default: _gelu,
        aten.pad.default: _pad,
        aten.reciprocal.default: _reciprocal,
        aten.upsample_bilinear2d.vec: _upsample,
    }


def _addcmul(x: Tensor, first: Tensor, second: Tensor, *, value: float = 1) -> Tensor:
    return x + value * first * second  # coremltools lacks it


def _alias(x: Tensor) -> Tensor:
    return x.view(x.shape)  # coremltools lacks alias, and drops this view


def _baddbmm(x: Tensor, first: Tensor, second: Tensor, *, beta: float = 1,
             alpha: float = 1) -> Tensor:
    # coremltools 9.0 turns integer factors into integer tensors, and then fails
    return beta * x + alpha * torch.bmm(first, second)


def _gelu(x: Tensor, *, approximate: str = 'none') -> Tensor:
    if approximate == 'none':
        return NotImplemented  # keep the operator
    # coremltools 9.0 ignores the argument, but recognises this form
    cubic = x + 0.044715 * x**3
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))


def _pad(x: Tensor, pad: Sequence[int], mode: str = 'constant',
         value: float | None = None) -> Tensor:
    # Core ML has no negative padding, which crops
    if mode != 'constant' or min(pad) >= 0:
        return NotImplemented
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2])):
        start, crop = max(-before, 0), max(-after, 0)
        x = x.narrow(-1 - i, start, x.shape[-1 - i] - start - crop)
    return F.pad(x, [max(amount, 0) for amount in pad], value=value)


def _reciprocal(x: Tensor) -> Tensor:
    # coremltools 9.0 computes 1 / (x + 1e-4)
    return torch.div(torch.ones_like(x), x)


def _upsample(x: Tensor, size: Sequence[int] | None, align_corners: bool,
              scales: Sequence[float] | None) -> Tensor:
    # coremltools 9.0 uses slightly different scales, an error of about 1e-3 where
    # SOFT's position embedding shrinks. Matmuls with constants are exact.
    if size is None or align_corners:
        return NotImplemented
    if tuple(size) == tuple(x.shape[2:]):
        return _alias(x)
    rows, columns = (_linear_weights(*sizes, x) for sizes in zip(x.shape[2:], size))
    return rows @ (x @ columns.T)


def _linear_weights(size: int, out: int, like: Tensor) -> Tensor:
    """Weights of linear interpolation from ``size`` to ``out`` samples, (out, size)."""
    target = torch.arange(out, dtype=like.dtype, device=like.device)
    source = ((target + 0.5) * (size / out) - 0.5).clamp(0, size - 1)
    samples = torch.arange(size, dtype=like.dtype, device=like.device)
    return (1 - (source[:, None] - samples).abs()).clamp(min=0)
