"""Export to Core ML, as an ML program for iOS 15, macOS 12 and later.

Core ML runs on Apple's systems only. Elsewhere a package can be written and read back,
but not run: compare what it computes with PyTorch's output on a Mac, by
``coremltools.models.MLModel(path).predict({'image': x.numpy()})``.
"""
import logging
import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from ..errors import InputError

SUFFIX = '.mlpackage'
MANIFEST = 'Manifest.json'  # what makes a folder a package


def export_coreml(model: nn.Module,
                  x: Tensor,
                  path: str | Path,
                  *,
                  output_names: Sequence[str],
                  input_name: str = 'image',
                  half: bool = False) -> None:
    """Write a model as a Core ML package for images of one shape.

    The package is read back and its inputs, outputs and weights are checked, but it is
    not run: that takes a Mac, see the module. Its arithmetic is in float32, which Core
    ML computes on the CPU and the GPU; the Neural Engine needs ``half``.

    Args:
        model (nn.Module): From one image (B, C, H, W) to a tuple of tensors, in eval
            mode.
        x (Tensor): An image; the package takes its shape only.
        path (str | Path): Package to write, a folder ending in ``.mlpackage``. It is
            written completely or not at all; an existing package is replaced.
        output_names (Sequence[str]): One name for every output.
        input_name (str): Name of the input. Defaults to 'image'.
        half (bool): Store weights and compute in float16. Inputs and outputs stay
            float32. Defaults to False.

    Raises:
        InputError: If coremltools is missing, ``path`` is something else already, the
            model must not be computed in float16, or coremltools cannot take it.
    """
    path = Path(path)
    _check_path(path)
    if half:
        _check_half(model)
    ct = _coremltools()
    package = _convert(ct, model, x, output_names, input_name, half)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix='.coreml-') as folder:
        draft = Path(folder) / path.name
        package.save(str(draft))
        _check_package(ct, draft, {input_name}, set(output_names))
        if path.exists():
            os.replace(path, Path(folder) / 'replaced')
        os.replace(draft, path)
    size = sum(file.stat().st_size for file in path.rglob('*') if file.is_file())
    print_log(
        f'{path.name}: {size / 1e6:.1f} MB, {"float16" if half else "float32"}, input '
        f'{input_name} {tuple(x.shape)}, outputs {", ".join(output_names)}. What it '
        'computes was not checked, only a Mac can run it.', logger='current')


def _check_path(path: Path) -> None:
    if path.suffix != SUFFIX:
        raise InputError(f'a Core ML package is a folder named *{SUFFIX}, got {path}')
    if path.exists() and not (path / MANIFEST).is_file():
        raise InputError(f'{path} exists and is no Core ML package; move it away, or '
                         'choose another name.')


def _check_half(model: nn.Module) -> None:
    for module in model.modules():
        if getattr(module, 'float32_only', False):
            raise InputError(
                f'{type(module).__name__} leaves the range of float16, in which Core '
                'ML would compute it: export this model in float32.')


def _coremltools() -> ModuleType:
    # It reports, in a line each, what of it exists on Macs only
    logging.getLogger('coremltools').setLevel(logging.ERROR)
    try:
        import coremltools
    except ImportError as error:
        raise InputError(
            f'Core ML export needs coremltools, which cannot be imported ({error}): '
            "pip install 'mm-efficient[coreml]'") from None
    return coremltools


def _convert(ct: ModuleType, model: nn.Module, x: Tensor, output_names: Sequence[str],
             input_name: str, half: bool):
    """The package, not written yet (``coremltools.models.MLModel``)."""
    precision = ct.precision.FLOAT16 if half else ct.precision.FLOAT32
    try:
        with torch.no_grad():
            program = torch.export.export(model, (x, ))
            program = program.run_decompositions(_decompositions())
        return ct.convert(
            program,
            convert_to='mlprogram',
            inputs=[ct.TensorType(input_name, tuple(x.shape))],
            outputs=[ct.TensorType(name) for name in output_names],
            minimum_deployment_target=ct.target.iOS15,
            compute_precision=precision,
            skip_model_load=True)
    except Exception as error:  # of any kind, by what coremltools lacks
        reason = ' '.join(str(error).split())[:300]
        raise InputError(
            'this model cannot be exported to Core ML: '
            f'{type(error).__name__}: {reason}. Export it to ONNX, or only its '
            'backbone to Core ML.') from error


def _check_package(ct: ModuleType, path: Path, inputs: set[str],
                   outputs: set[str]) -> None:
    """Read a package back: has it the right names, and are its weights numbers?"""
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
        value = operation.outputs[0].val if operation.op_type == 'const' else None
        if np.ndim(value) and np.issubdtype(value.dtype, np.floating) and not (
                np.isfinite(value).all()):
            raise InputError(
                f'the weight {operation.name} has values that are infinite or not a '
                'number; check the checkpoint, or export in float32.')


# ------------------------------------------------- what coremltools lacks or gets wrong


def _decompositions() -> dict:
    """Operators and what to compute in their place, numerically the same."""
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
    return x + value * first * second  # unknown to coremltools


def _alias(x: Tensor) -> Tensor:
    return x.view(x.shape)  # unknown to coremltools, which drops this one


def _baddbmm(x: Tensor, first: Tensor, second: Tensor, *, beta: float = 1,
             alpha: float = 1) -> Tensor:
    # coremltools 9.0 makes integer factors integer tensors, and then fails
    return beta * x + alpha * torch.bmm(first, second)


def _gelu(x: Tensor, *, approximate: str = 'none') -> Tensor:
    if approximate == 'none':
        return NotImplemented  # left as it is
    # coremltools 9.0 overlooks the argument; this it knows as the tanh form
    cubic = x + 0.044715 * x**3
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * cubic))


def _pad(x: Tensor, pad: Sequence[int], mode: str = 'constant',
         value: float | None = None) -> Tensor:
    # Core ML pads by nothing or more; by less is to crop
    if mode != 'constant' or min(pad) >= 0:
        return NotImplemented
    for i, (before, after) in enumerate(zip(pad[::2], pad[1::2])):
        start, crop = max(-before, 0), max(-after, 0)
        x = x.narrow(-1 - i, start, x.shape[-1 - i] - start - crop)
    return F.pad(x, [max(amount, 0) for amount in pad], value=value)


def _reciprocal(x: Tensor) -> Tensor:
    # coremltools 9.0 would compute 1 / (x + 1e-4)
    return torch.div(torch.ones_like(x), x)


def _upsample(x: Tensor, size: Sequence[int] | None, align_corners: bool,
              scales: Sequence[float] | None) -> Tensor:
    # coremltools 9.0 takes slightly other scales: an error of about 1e-3 where SOFT's
    # position embedding shrinks. As products with constants it is exact.
    if size is None or align_corners:
        return NotImplemented
    if tuple(size) == tuple(x.shape[2:]):
        return _alias(x)
    rows, columns = (_linear_weights(*sizes, x) for sizes in zip(x.shape[2:], size))
    return rows @ (x @ columns.T)


def _linear_weights(size: int, out: int, like: Tensor) -> Tensor:
    """Share of every one of ``size`` samples in every one of ``out``, (out, size)."""
    target = torch.arange(out, dtype=like.dtype, device=like.device)
    source = ((target + 0.5) * (size / out) - 0.5).clamp(0, size - 1)
    samples = torch.arange(size, dtype=like.dtype, device=like.device)
    return (1 - (source[:, None] - samples).abs()).clamp(min=0)
