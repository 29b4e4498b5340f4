"""Export of models to files that other runtimes read, each verified before it is kept.

- ``onnx``: for ONNX Runtime, TensorRT, OpenVINO, ...; batch, height and width free;
- ``torchscript``: traced, for libtorch; likewise free;
- ``torch-export``: a program of `torch.export`, likewise free; programs of detectors
  need ``import mm_efficient.deploy`` where they are loaded;
- ``coreml``: for Apple's devices, one image of one size, see :mod:`.coreml`.
"""
import contextlib
import copy
import io
import json
import os
import shutil
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import InputError, explain
from ..files import check_output
from ..version import __version__
from .coreml import export_coreml
from .fusing import FusionReport, fuse
from .models import DeployBackbone, deploy_model
from .operators import onnx_translations
from .verification import Agreement, compare, predict

SUFFIXES = {'onnx': '.onnx', 'torchscript': '.pt', 'torch-export': '.pt2',
            'coreml': '.mlpackage'}
INPUT_NAME = 'input'
# What is traced to leave shapes free: sizes that agree by chance would be taken for the
# same one, and a batch or a level of one for a constant
TRACED_BATCH, TRACED_SIZE = 2, (256, 320)
MIN_TORCH = (2, 6)


@dataclass
class Export:
    """What an export did.

    Args:
        fusion (FusionReport, optional): What was folded.
        agreements (list[Agreement]): Of the file with PyTorch; empty if the file
            cannot be run here.
        operators (dict[str, int]): Operators of an ONNX file and how often they occur.
    """
    fusion: FusionReport | None
    agreements: list[Agreement] = field(default_factory=list)
    operators: dict[str, int] = field(default_factory=dict)


def check_format(format: str, path: str | Path, half: bool = False) -> None:
    """Check that a format can be written here.

    Args:
        format (str): One of ``SUFFIXES``.
        path (str | Path): The file it is for.
        half (bool): Whether it is to be in float16. Defaults to False.

    Raises:
        InputError: If it is unknown, needs what is not installed, or the name of the
            file is not one of it.
    """
    if format not in SUFFIXES:
        raise InputError(f'unknown format {format!r}; expected one of '
                         f'{", ".join(SUFFIXES)}.')
    if Path(path).suffix != SUFFIXES[format]:
        raise InputError(f'{path}: the name of a file of format {format} ends with '
                         f'{SUFFIXES[format]}.')
    if half and format != 'coreml':
        raise InputError(f'float16 is a choice of format coreml, asked for {format}; '
                         'other runtimes convert files themselves.')
    version = tuple(int(part) for part in torch.__version__.split('.')[:2])
    if version < MIN_TORCH:
        raise InputError(f'exporting needs torch {".".join(map(str, MIN_TORCH))} or '
                         f'later, this is {torch.__version__}.')
    packages = dict(onnx=('onnx', 'onnxscript', 'onnxruntime'),
                    coreml=('coremltools', )).get(format, ())
    for package in packages:
        try:
            __import__(package)
        except ImportError as error:
            raise InputError(f'format {format} needs {package}: {error}. '
                             f"pip install 'mm-efficient[{format}]'") from None


def export(model: nn.Module, path: str | Path, images: Sequence[Tensor], *,
           format: str = 'onnx', backbone: bool = False, fused: bool = True,
           static: bool = False, half: bool = False, metadata: dict | None = None,
           progress: Callable[[str], None] | None = None) -> Export:
    """Export a model, and keep the file if it predicts what the model does.

    Args:
        model (nn.Module): Whole model of OpenMMLab, or, with ``backbone``, a backbone.
            It is not changed.
        path (str | Path): The file. Written completely or not at all.
        images (Sequence[Tensor]): Batches to compare for, of different sizes unless
            ``static``: RGB photographs of 0 to 255, (B, 3, H, W), or for a backbone
            normalised ones. The first is of the size of a static export.
        format (str): See the module. Defaults to 'onnx'.
        backbone (bool): Whether the model is a backbone. Defaults to False.
        fused (bool): Fold norms and scales before, see :func:`~.fusing.fuse`.
            Defaults to True.
        static (bool): For batches of one image of one size only; always so for Core
            ML. Defaults to False.
        half (bool): Weights and arithmetic of a Core ML package in float16.
            Defaults to False.
        metadata (dict, optional): What to note in an ONNX file, strings or what JSON
            can hold. Defaults to None.
        progress (Callable, optional): Told what is done next. Defaults to None.

    Returns:
        Export: What was folded, and how well the outputs agree.

    Raises:
        InputError: If the model cannot be exported, the file cannot be written, or it
            predicts otherwise.
    """
    check_format(format, path, half)
    check_output(path, [SUFFIXES[format]])
    static = static or format == 'coreml'
    if static:
        size = images[0].shape[2:]
        images = [batch[:1] for batch in images if batch.shape[2:] == size]
    progress = progress or (lambda what: None)
    model = copy.deepcopy(model).requires_grad_(False)
    model.eval()  # of OpenMMLab's ResNet and Swin themselves it returns nothing
    module = (DeployBackbone if backbone else deploy_model)(copy.deepcopy(model))
    module.eval()
    progress('predicting in PyTorch')
    expected = _predict_all(model, images, backbone)
    result = Export(None)
    if fused:
        progress('folding')
        result.fusion = fuse(module, images[0][:1], lambda module, x: module.network(x))
    progress(f'exporting to {format}')
    if format == 'coreml':
        export_coreml(module, images[0].contiguous(), path, half=half,
                      output_names=module.output_names, input_name=INPUT_NAME)
        return result
    with _draft(path) as draft:
        _write(module, draft, images[0], format, static, metadata or {})
        if format == 'onnx':
            result.operators = onnx_operators(draft)
        progress('comparing with PyTorch')
        result.agreements = _compare_all(
            load(draft, format), images, expected, _mask_threshold(model))
    return result


@torch.no_grad()
def _predict_all(model: nn.Module, images: Sequence[Tensor], backbone: bool
                 ) -> list[list]:
    expected = []
    for batch in images:
        with explain(f'the model cannot run images of {_shape(batch)} in PyTorch'):
            expected.append(list(model(batch)) if backbone else predict(model, batch))
    return expected


def _shape(batch: Tensor) -> str:
    return ' x '.join(map(str, batch.shape))


def _mask_threshold(model: nn.Module) -> float:
    cfg = getattr(model, 'test_cfg', None) or {}
    return cfg.get('rcnn', {}).get('mask_thr_binary', 0.5)


def _compare_all(run: Callable[[Tensor], list[Tensor]], images: Sequence[Tensor],
                 expected: Sequence[list], mask_threshold: float) -> list[Agreement]:
    agreements = []
    for batch, outputs in zip(images, expected):
        with explain(f'the exported model cannot run images of {_shape(batch)}, so '
                        'the file is not kept'):
            agreements.append(compare(run, batch, outputs, mask_threshold))
    wrong = [str(each) for each in agreements if not each.agrees]
    if wrong:
        raise InputError(
            'the exported model does not predict what the model in PyTorch does, '
            'so the file is not kept:\n  ' + '\n  '.join(wrong))
    return agreements


@contextlib.contextmanager
def _draft(path: str | Path):
    """A path to write to that becomes ``path`` in the end if nothing fails."""
    path = Path(path)
    folder = Path(tempfile.mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    try:
        draft = folder / path.name
        yield draft
        os.replace(draft, path)
    finally:
        shutil.rmtree(folder)


def _write(module: nn.Module, path: Path, x: Tensor, format: str, static: bool,
           metadata: dict) -> None:
    with explain(f'the model cannot be exported to {format}'), torch.no_grad(), \
            warnings.catch_warnings(), \
            contextlib.redirect_stdout(io.StringIO()):  # exporters talk
        warnings.simplefilter('ignore')
        x = x[:1] if static else x.new_zeros(TRACED_BATCH, x.shape[1], *TRACED_SIZE)
        if format == 'onnx':
            _write_onnx(module, path, x, static, metadata)
        elif format == 'torchscript':
            torch.jit.trace(module, x, check_trace=False).save(str(path))
        else:
            auto = torch.export.Dim.AUTO
            free = None if static else ({0: auto, 2: auto, 3: auto}, )
            torch.export.save(
                torch.export.export(module, (x, ), dynamic_shapes=free), path)


def _write_onnx(module: nn.Module, path: Path, x: Tensor, static: bool,
                metadata: dict) -> None:
    free = None if static else ({0: 'batch', 2: 'height', 3: 'width'}, )
    program = torch.onnx.export(
        module, (x, ), dynamo=True, verbose=False, dynamic_shapes=free,
        input_names=[INPUT_NAME], output_names=list(module.output_names),
        custom_translation_table=onnx_translations())
    program.model.producer_name = 'mm_efficient'
    program.model.producer_version = __version__
    for key, value in metadata.items():
        program.model.metadata_props[key] = (
            value if isinstance(value, str) else json.dumps(value))
    program.save(str(path))


def load(path: str | Path, format: str) -> Callable[[Tensor], list[Tensor]]:
    """Load an exported model, to run it on the CPU.

    Args:
        path (str | Path): The file.
        format (str): 'onnx', 'torchscript' or 'torch-export'.

    Returns:
        Callable: From images (B, C, H, W) to a list of tensors.
    """
    if format == 'onnx':
        import onnxruntime
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(
            str(path), options, providers=['CPUExecutionProvider'])
        return lambda x: [torch.from_numpy(output) for output in session.run(
            None, {INPUT_NAME: x.numpy()})]
    if format == 'torchscript':
        module = torch.jit.load(str(path))
    else:
        module = torch.export.load(path).module()

    def run(x):
        with torch.no_grad():
            return list(module(x))
    return run


def onnx_operators(path: str | Path) -> dict[str, int]:
    """Operators of an ONNX file, the most frequent first.

    Args:
        path (str | Path): The file.

    Returns:
        dict[str, int]: How often each occurs.
    """
    import onnx
    graph = onnx.load(str(path), load_external_data=False)
    nodes = [*graph.graph.node, *(n for f in graph.functions for n in f.node)]
    return dict(Counter(node.op_type for node in nodes).most_common())
