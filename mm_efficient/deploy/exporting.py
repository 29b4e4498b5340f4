"""Export models to files for other runtimes; a file is kept only if its outputs agree.

- ``onnx``: ONNX Runtime, TensorRT, OpenVINO, ...; dynamic batch size, height and width;
- ``torchscript``: traced, for libtorch; dynamic as well;
- ``torch-export``: ExportedProgram, dynamic as well; detectors need
  ``import mm_efficient.deploy`` before loading;
- ``coreml``: for Apple devices, one image of fixed shape, see :mod:`.coreml`.
"""
import contextlib
import copy
import gc
import io
import json
import os
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ExecutionError, InputError, explain
from ..files import check_output, whole_file
from ..version import __version__
from .coreml import export_coreml
from .functions import Library, define_functions, split_functions
from .fusing import FusionReport, fuse
from .models import DeployBackbone, deploy_model
from .operators import SingleOperators, onnx_translations
from .verification import ParityResult, measure_parity, predict

SUFFIXES = {'onnx': '.onnx', 'torchscript': '.pt', 'torch-export': '.pt2',
            'coreml': '.mlpackage'}
PACKAGES = {'onnx': ('onnx', 'onnxscript', 'onnxruntime'), 'coreml': ('coremltools', )}
INPUT_NAME = 'input'
# For tracing models with dynamic shapes: tracers take equal sizes for the same one, and
# a size of 1 (of the batch or of a feature map) for a constant
TRACED_BATCH_SIZE, TRACED_SHAPE = 2, (256, 320)
MIN_TORCH = (2, 6)


@dataclass
class ExportResult:
    """Result of an export.

    Args:
        fusion (FusionReport, optional): What was fused. Defaults to None.
        parity (list[ParityResult]): Comparison with PyTorch, one per batch; empty if
            the file cannot be run here. Defaults to [].
        operators (dict[str, int]): Number of operators in an ONNX file by type, most
            frequent first. Defaults to {}.
    """
    fusion: FusionReport | None = None
    parity: list[ParityResult] = field(default_factory=list)
    operators: dict[str, int] = field(default_factory=dict)


def check_format(format: str, path: str | Path, fp16: bool = False,
                 opset: int | None = None) -> None:
    """Check that a format can be written here.

    Args:
        format (str): A key of ``SUFFIXES``.
        path (str | Path): The file to write.
        fp16 (bool): Whether to export in float16. Defaults to False.
        opset (int, optional): Version of ONNX's operators. Defaults to None.

    Raises:
        InputError: If the format is unknown, needs a missing package, or does not match
            the suffix of ``path``, ``fp16`` or ``opset``.
    """
    if format not in SUFFIXES:
        raise InputError(f'unknown format {format!r}; expected one of '
                         f'{", ".join(SUFFIXES)}.')
    if Path(path).suffix != SUFFIXES[format]:
        raise InputError(f'{path}: files in format {format} must end with '
                         f'{SUFFIXES[format]}.')
    if fp16 and format != 'coreml':
        raise InputError(f'float16 is available in format coreml only, got {format}; '
                         'convert the exported file with the tools of your runtime.')
    if opset is not None and format != 'onnx':
        raise InputError(f'an opset is for format onnx only, got {format}.')
    version = tuple(int(part) for part in torch.__version__.split('.')[:2])
    if version < MIN_TORCH:
        raise InputError(f'exporting needs torch {".".join(map(str, MIN_TORCH))} or '
                         f'later, got {torch.__version__}.')
    for package in PACKAGES.get(format, ()):
        try:
            __import__(package)
        except ImportError as error:
            raise InputError(f'format {format} needs {package}: {error}. Run '
                             f"pip install 'mm-efficient[{format}]'") from None
    if opset is not None:
        import onnx
        newest = onnx.defs.onnx_opset_version()
        if not 1 <= opset <= newest:
            raise InputError(f'there is no opset {opset}; expected {newest} or less, '
                             'and at least 18 for most models.')


@torch.inference_mode(False)  # else weights cannot be changed, nor graphs be traced
@torch.autocast('cpu', enabled=False)
def export(model: nn.Module, path: str | Path, images: Sequence[Tensor], *,
           format: str = 'onnx', backbone: bool = False, fused: bool = True,
           static: bool = False, fp16: bool = False, opset: int | None = None,
           metadata: dict | None = None,
           progress: Callable[[str], None] | None = None) -> ExportResult:
    """Export a model, and keep the file only if it predicts what the model does.

    Args:
        model (nn.Module): Whole model of OpenMMLab, or a backbone if ``backbone`` is
            set. It is not changed.
        path (str | Path): Output file, written completely or not at all. Weights of
            more than 1.5 GiB of an ONNX file are in a second one, with ``.data`` added
            to the name.
        images (Sequence[Tensor]): Batches to compare with PyTorch on, (B, 3, H, W), of
            different shapes unless ``static``: RGB, 0 to 255, or normalised images for
            a backbone. A static export has the shape of the first image.
        format (str): See the module. Defaults to 'onnx'.
        backbone (bool): Whether the model is a backbone. Defaults to False.
        fused (bool): Fuse the model first, see :func:`~.fusing.fuse`. Defaults to True.
        static (bool): Fix the shape to one image. Always so for Core ML.
            Defaults to False.
        fp16 (bool): Core ML only: weights and arithmetic in float16. Defaults to False.
        opset (int, optional): ONNX only: version of the operators. PyTorch writes 18
            and later, and earlier ones if the graph can be converted. Defaults to None,
            its default.
        metadata (dict, optional): Metadata of an ONNX file, strings or anything that
            JSON can represent. Defaults to None.
        progress (Callable, optional): Called with a description of each step.
            Defaults to None.

    Returns:
        ExportResult: What was fused, and how well the outputs agree.

    Raises:
        InputError: If the model, its dtype or the format is not supported, or the file
            cannot be written.
        ExecutionError: If the export fails, or the exported model's predictions differ.
    """
    check_format(format, path, fp16, opset)
    check_output(path, [SUFFIXES[format]])
    path = Path(path)
    static = static or format == 'coreml'
    if static:
        shape = images[0].shape[2:]
        images = [batch[:1] for batch in images if batch.shape[2:] == shape]
    report = progress or (lambda step: None)
    dtypes = {p.dtype for p in model.parameters()}
    if dtypes and torch.float32 not in dtypes:
        raise InputError(f'the model is in {", ".join(sorted(map(str, dtypes)))}; '
                         'expected float32: convert it by model.float().')
    # Files are made and compared on the CPU
    model = copy.deepcopy(model).cpu().requires_grad_(False)
    model.eval()  # returns None for OpenMMLab's ResNet and Swin
    deployed: Any = (DeployBackbone if backbone else deploy_model)(copy.deepcopy(model))
    deployed.eval()
    report('predicting in PyTorch')
    expected = _predict_all(model, images, backbone)
    result = ExportResult()
    if fused:
        report('fusing')
        result.fusion = fuse(deployed, images[0][:1], lambda model, x: model.network(x))
    report(f'exporting to {format}')
    if format == 'coreml':
        export_coreml(deployed, images[0], path, fp16=fp16, input_name=INPUT_NAME,
                      output_names=deployed.output_names)
        return result
    # Under its final name, in a folder of its own: an ONNX file refers by name to a
    # second file beside it, if there are more than 1.5 GiB of weights
    with tempfile.TemporaryDirectory(prefix='.export', dir=path.parent) as folder:
        draft = Path(folder, path.name)
        _write(deployed, draft, images[0], format, static, opset, metadata or {})
        if format == 'onnx':
            result.operators = _count_operators(draft)
        report('comparing with PyTorch')
        result.parity = _verify(load_exported(draft, format), images, expected,
                                _mask_threshold(model))
        for file in sorted(Path(folder).iterdir(), key=lambda f: f == draft):
            with whole_file(path.with_name(file.name)) as whole:
                os.replace(file, whole)
    return result


@torch.no_grad()
def _predict_all(model: nn.Module, images: Sequence[Tensor], backbone: bool
                 ) -> list[list]:
    expected = []
    for batch in images:
        with explain(
                f'the model cannot run images of {_format_shape(batch)} in PyTorch'):
            expected.append(list(model(batch)) if backbone else predict(model, batch))
    return expected


def _format_shape(batch: Tensor) -> str:
    return ' x '.join(map(str, batch.shape))


def _mask_threshold(model: Any) -> float:
    cfg = getattr(model, 'test_cfg', None) or {}
    return cfg.get('rcnn', {}).get('mask_thr_binary', 0.5)


def _verify(run: Callable[[Tensor], list[Tensor]], images: Sequence[Tensor],
            expected: Sequence[list], mask_threshold: float) -> list[ParityResult]:
    """Compare all batches; an error unless all agree."""
    results = []
    for batch, outputs in zip(images, expected):
        with explain('the exported model cannot run images of '
                     f'{_format_shape(batch)}, so the file is not kept'):
            results.append(measure_parity(run, batch, outputs, mask_threshold))
    failed = [str(result) for result in results if not result.passed]
    if failed:
        raise ExecutionError(
            'the exported model does not predict what the model does in PyTorch, so '
            'the file is not kept:\n  ' + '\n  '.join(failed))
    return results


def _write(module: Any, path: Path, x: Tensor, format: str, static: bool,
           opset: int | None, metadata: dict) -> None:
    """Write a model that takes ``x``; its values do not matter."""
    x = x[:1] if static else x.new_zeros(TRACED_BATCH_SIZE, x.shape[1], *TRACED_SHAPE)
    with explain(f'the model cannot be exported to {format}'), torch.no_grad(), \
            warnings.catch_warnings(), _garbage_kept(), \
            contextlib.redirect_stdout(io.StringIO()):  # exporters print
        warnings.simplefilter('ignore')
        if format == 'torchscript':
            traced = torch.jit.trace(module, x, check_trace=False)
            follow_input_device(traced)
            traced.save(str(path))
            return
        # With dynamic sizes, entries of this cache cost more than they save
        with torch._dynamo.config.patch(fake_tensor_cache_enabled=False):
            if format == 'onnx':
                _write_onnx(module, path, x, static, opset, metadata)
                return
            program = torch.export.export(
                module, (x, ), dynamic_shapes=None if static else (_image_sizes(), ))
            torch.export.save(program, path)


@contextlib.contextmanager
def _garbage_kept() -> Iterator[None]:
    """Stop the search for cycles: exporters make millions of objects that stay."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _image_sizes() -> dict[int, Any]:
    """Dynamic sizes of images. With named ones PyTorch traces detectors twice."""
    return {dim: torch.export.Dim.AUTO for dim in (0, 2, 3)}


def follow_input_device(traced: Any) -> None:
    """Let a traced model run on the device of its input.

    Tracing records the device of every tensor that is made or moved, as a constant.

    Args:
        traced (torch.jit.ScriptModule): Changed in place; its input is a tensor.
    """
    graph = traced.graph
    torch._C._jit_pass_inline(graph)  # the graphs of submodules have other inputs
    _, image = graph.inputs()
    device = graph.create('prim::device', [image], 1)
    device.output().setType(torch._C.DeviceObjType.get())
    graph.prependNode(device)
    for node in graph.findAllNodes('prim::Constant'):
        if node.output().type().kind() == 'DeviceObjType':
            node.output().replaceAllUsesWith(device.output())
    torch._C._jit_pass_dce(graph)


def _write_onnx(module: Any, path: Path, x: Tensor, static: bool, opset: int | None,
                metadata: dict) -> None:
    functions = [] if static else split_functions(module)
    arguments = x, [function.arguments() for function in functions]
    sizes = [function.dynamic_sizes() for function in functions]
    others = [tensor for inputs, weights in arguments[1]
              for tensor in (*inputs, *weights)]
    with SingleOperators():
        exported = torch.export.export(
            Library(module, functions), arguments,
            dynamic_shapes=None if static else (_image_sizes(), sizes))
    program: Any = torch.onnx.export(
        exported, dynamo=True, verbose=False, opset_version=opset,
        input_names=[INPUT_NAME],
        output_names=[*module.output_names, *(each.name for each in functions)],
        # Names of the image's sizes; the others belong to functions
        dynamic_shapes=None if static else (
            {0: 'batch', 2: 'height', 3: 'width'}, *[None] * len(others)),
        custom_translation_table=onnx_translations())
    written = program.model.opset_imports['']
    if opset not in (None, written):
        raise ExecutionError(
            f'the graph cannot be converted to opset {opset}: PyTorch wrote opset '
            f'{written}. Choose that, a later one, or no opset.')
    if functions:
        define_functions(program.model, functions)
    program.model.producer_name = 'mm_efficient'
    program.model.producer_version = __version__
    for key, value in metadata.items():
        program.model.metadata_props[key] = (
            value if isinstance(value, str) else json.dumps(value))
    program.save(str(path))


def load_exported(path: str | Path, format: str) -> Callable[[Tensor], list[Tensor]]:
    """Load an exported model to run it on the CPU.

    Args:
        path (str | Path): The file.
        format (str): 'onnx', 'torchscript' or 'torch-export'.

    Returns:
        Callable: Function from images (B, C, H, W) to a list of tensors.
    """
    if format == 'onnx':
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            str(path), options, providers=['CPUExecutionProvider'])
        return lambda x: [torch.from_numpy(output) for output in session.run(
            None, {INPUT_NAME: x.numpy()})]
    module = (torch.jit.load(str(path)) if format == 'torchscript'
              else torch.export.load(path).module())
    return torch.no_grad()(lambda x: list(module(x)))


def _count_operators(path: Path) -> dict[str, int]:
    import onnx
    model = onnx.load(str(path), load_external_data=False)
    nodes = [*model.graph.node, *(n for f in model.functions for n in f.node)]
    for node in nodes:  # grows by the bodies of loops
        nodes += [n for attribute in node.attribute for n in attribute.g.node]
    return dict(Counter(node.op_type for node in nodes).most_common())
