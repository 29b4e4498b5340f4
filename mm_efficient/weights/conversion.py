"""Converting published state dicts to ours: the part that all families share.

A :class:`~.family.Family` recognises its published tensors and, for every tensor of our
model, names the published ones it is made of. Everything else happens here: finding the
weights inside the file, checking that every published tensor is used, and checking the
result against the model that the registry builds.
"""
import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from mmengine.registry import DefaultScope
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..files import config_files
from ..version import __version__
from .family import FAMILIES, CheckpointError, Family, Layout, Source, Tensors
from .matching import list_some, nested_state_dicts, strip_wrappers

LARGEST_VIEW = 1 << 30  # bytes of a tensor that repeats a few values
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class OwnCheckpointError(CheckpointError):
    """A checkpoint to convert is in our layout already."""


class UnknownWeightsError(CheckpointError):
    """A checkpoint to convert holds tensors of no known family.

    Attributes:
        checkpoint (Mapping): The checkpoint.
    """

    checkpoint: Mapping


@dataclass(frozen=True)
class Conversion:
    """Result of :func:`convert_checkpoint`.

    Args:
        family (str): Family name.
        arch (str): A key of the backbone's ``ARCHS``.
        state_dict (dict[str, Tensor]): Weights of the ``ImageClassifier``,
            keys ``backbone.*`` and ``head.*``.
        meta (dict): Origin of the weights, for the checkpoint file.
        report (str): The same as text, with the matching configs.
    """

    family: str
    arch: str
    state_dict: dict[str, Tensor]
    meta: dict
    report: str

    @property
    def checkpoint(self) -> dict:
        """The MMEngine checkpoint ``dict(meta=..., state_dict=...)``."""
        return dict(meta=self.meta, state_dict=self.state_dict)


def convert_checkpoint(checkpoint: Mapping) -> Conversion:
    """Convert a published checkpoint to the weights of our classifier.

    Args:
        checkpoint (dict): Content of the published file: a state dict, alone or
            nested under ``state_dict_ema``, ``model``, ...

    Returns:
        Conversion: Weights that ``ImageClassifier`` loads with
        ``strict=True``. Tensors are copies and keep their type.

    Raises:
        OwnCheckpointError: If it is converted already, or written by MMEngine.
        UnknownWeightsError: If it is of no known family.
        CheckpointError: If it is not a checkpoint, or does not match the model
            tensor by tensor.
    """
    if not isinstance(checkpoint, Mapping):
        raise CheckpointError(
            'expected a dict of tensors, alone or nested, got '
            f"{type(checkpoint).__name__}; pass the authors' file")
    _refuse_our_own(checkpoint)
    family, layout, entry, tensors = _recognise(checkpoint)
    model = _build_on_meta(layout.model)
    what = f'{family.name} {layout.arch} in {entry}'
    state_dict, dropped = _convert(layout, tensors, model.state_dict(), what)
    origin = dict(
        family=family.name,
        arch=layout.arch,
        layout=layout.layout,
        entry=entry,
        converter=__version__)
    return Conversion(
        family=family.name,
        arch=layout.arch,
        state_dict=state_dict,
        meta=dict(mm_efficient=origin),
        report=_report(origin, layout, state_dict, dropped,
                       sum(p.numel() for p in model.parameters())))


def _refuse_our_own(checkpoint: Mapping) -> None:
    meta = checkpoint.get('meta')
    if not isinstance(meta, Mapping):
        return
    if 'mm_efficient' in meta:
        origin = meta['mm_efficient']
        raise OwnCheckpointError(
            f'already converted ({origin["family"]} {origin["arch"]}): use '
            'the file directly')
    if 'mmengine_version' in meta:
        raise OwnCheckpointError(
            'this checkpoint was written by MMEngine, not published by the '
            'authors of a model: there is nothing to convert')


def _recognise(checkpoint: Mapping) -> tuple[Family, Layout, str, dict[str, Tensor]]:
    """Find the family, and the entry of the file that it prefers."""
    found = {
        '.'.join(path) or 'top level': strip_wrappers(tensors)
        for path, tensors in nested_state_dicts(checkpoint)
    }
    if not found:
        raise CheckpointError(
            f'holds no tensors; its keys are {list_some(checkpoint)}. Pass the '
            "authors' file")
    matches: dict[str, list] = {}
    for entry, tensors in found.items():
        for family in FAMILIES:
            layout = family.recognise(tensors)
            if layout is not None:
                matches.setdefault(family.name, []).append(
                    (family, layout, entry, tensors))
    if not matches:
        raise _unknown(checkpoint, found)
    if len(matches) > 1:
        raise CheckpointError(
            f'holds weights of several families ({", ".join(matches)}); pass '
            'a file with only one')
    (candidates,) = matches.values()
    order = candidates[0][0].entries

    def rank(candidate: tuple) -> int:
        parts = candidate[2].split('.')
        return min(
            (order.index(part) for part in parts if part in order),
            default=len(order))

    return min(candidates, key=rank)


def _unknown(checkpoint: Mapping, found: Mapping[str, Tensors]) -> CheckpointError:
    entry, tensors = max(found.items(), key=lambda item: len(item[1]))
    if 'head.fc.weight' in tensors:
        return OwnCheckpointError(
            f'the keys in {entry} are those of an OpenMMLab classifier '
            'already: use the file directly')
    known = ', '.join(sorted(family.name for family in FAMILIES))
    error = UnknownWeightsError(
        f'of no known family (known: {known}). {entry} has {len(tensors)} '
        f'tensors: {list_some(tensors)}. Pass a file published by the authors of '
        'one of these families')
    error.checkpoint = checkpoint
    return error


def _convert(layout: Layout, tensors: Tensors, targets: Tensors, what: str
             ) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Build every tensor of our model; use or explicitly drop every published one.

    Args:
        layout (Layout): Layout that the family has recognised.
        tensors (dict[str, Tensor]): Published tensors.
        targets (dict[str, Tensor]): Our ``state_dict`` on the meta device.
        what (str): Name of the weights, for error messages.

    Returns:
        tuple[dict, dict]: Our state dict; dropped keys and the reasons.
    """
    state_dict: dict[str, Tensor] = {}
    missing, wrong, used = [], [], set[str]()
    for target, expected in targets.items():
        source = layout.sources(target)
        used.update(source.keys)
        absent = [key for key in source.keys if key not in tensors]
        missing += absent
        if absent:
            continue
        value, fault = _make(source, tensors, expected)
        if fault or value is None:
            wrong.append(f'{" + ".join(source.keys)} ({fault})')
        else:
            state_dict[target] = value
    dropped = {
        key: reason
        for key in tensors if key not in used
        for pattern, reason in layout.ignored.items()
        if re.fullmatch(pattern, key)
    }
    unknown = [key for key in tensors if key not in used | dropped.keys()]
    faults = [f'{len(names)} {title}: {list_some(names)}' for title, names in (
        ('missing', missing), ('unknown', unknown), ('unusable', wrong)
    ) if names]
    if faults:
        raise CheckpointError(
            f'{what} does not fit our model; {"; ".join(faults)}. Nothing was '
            "converted; get the authors' complete file")
    return state_dict, dropped


def _make(source: Source, tensors: Tensors, expected: Tensor
          ) -> tuple[Tensor | None, str | None]:
    """Return our tensor, and what is wrong with it if anything."""
    parts = [tensors[key].detach() for key in source.keys]
    fault = next(filter(None, (_unusable(part, expected) for part in parts)), None)
    if fault:
        return None, fault
    try:
        value = source.make(*parts)
    except RuntimeError:  # the parts do not match
        shapes = ' + '.join(str(tuple(part.shape)) for part in parts)
        return None, f'expected {tuple(expected.shape)}, got {shapes}'
    if expected.ndim == 0 and value.shape == (1, ):
        value = value[0]  # as load_state_dict does, for old files
    # A view would drag its whole storage into the file
    value = value.clone(memory_format=torch.contiguous_format)
    if value.shape != expected.shape:
        return value, (f'expected {tuple(expected.shape)}, got '
                       f'{tuple(value.shape)}')
    if value.is_floating_point() != expected.is_floating_point():
        return value, f'expected {expected.dtype}, got {value.dtype}'
    if value.is_floating_point() and not value.isfinite().all():
        return value, 'holds values that are not finite'
    return value, None


def _unusable(part: Tensor, expected: Tensor) -> str | None:
    """Why nothing can be made of a published tensor."""
    if part.layout != torch.strided or part.is_quantized:
        return 'is sparse or quantized, expected plain values'
    if part.is_meta:
        return 'has a shape, but no values'
    size, stored = part.numel() * part.element_size(), part.untyped_storage().nbytes()
    if size > max(stored, LARGEST_VIEW):
        return f'claims {part.numel()} values, of which the file has {stored} bytes'
    if expected.is_floating_point() and part.dtype not in FLOATS:
        return f'expected {expected.dtype}, got {part.dtype}'
    return None


def _build_on_meta(config: dict) -> nn.Module:
    """Build a model with names, shapes and types but no memory."""
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
        return MODELS.build(config)


def _report(origin: dict, layout: Layout, state_dict: Tensors,
            dropped: Mapping[str, str], num_parameters: int) -> str:
    size = sum(t.numel() * t.element_size() for t in state_dict.values())
    configs = [f'configs/cls/{path.name}' for path in config_files()
               if path.parent.name == 'cls'
               and path.stem.rpartition('_')[0] in layout.variants]
    lines = [
        f'family     {origin["family"]}',
        f'arch       {origin["arch"]}',
        f'source     {origin["layout"]} names, {origin["entry"]}',
        f'size       {num_parameters:,} parameters, {len(state_dict)} tensors, '
        f'{size / 2**20:.1f} MiB',
        f'configs    {", ".join(configs)}',
    ]
    lines += [f'dropped    {key}: {why}' for key, why in dropped.items()]
    lines += [f'note       {note}' for note in layout.notes]
    num_classes = layout.model['head']['num_classes']
    if num_classes != 1000:
        lines.append('note       set model.head.num_classes='
                     f'{num_classes} in the config')
    return '\n'.join(lines)
