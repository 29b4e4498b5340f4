"""Loading pretrained weights completely or not at all."""
import logging
import os
import re
import textwrap
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from timm.models import adapt_input_conv
from torch import Tensor, nn

from .family import CheckpointError
from .locating import NeverPublishedError, locate
from .matching import (
    Mismatch,
    compare_state_dicts,
    nested_state_dicts,
    stored_weights,
    strip_wrappers,
)
from .reading import SCHEME, read_published, read_untrusted

# What a check has read, cached for loading; see `_read`
_kept: dict[tuple[str, int | None], Any] = {}


def load_pretrained(backbone: nn.Module, checkpoint: str, prefix: str | None = None,
                    map_location: str = 'cpu') -> None:
    """Load ``init_cfg=dict(type='Pretrained', ...)`` of a backbone.

    MMEngine itself only warns about tensors that do not fit, and without ``prefix``
    loads nothing from a classifier's checkpoint. Here the backbone's part is found and
    has to fit.

    Args:
        backbone (PyramidBackbone): Receives the weights.
        checkpoint (str): See :func:`match_pretrained`.
        prefix (str, optional): See :func:`match_pretrained`. Defaults to None.
        map_location (str): Device to read the file to. Defaults to 'cpu'.

    Raises:
        CheckpointError: If a tensor is missing, unexpected or of another shape.
    """
    state_dict = match_pretrained(backbone, checkpoint, prefix, map_location)
    backbone.load_state_dict(state_dict, strict=False)
    print_log(
        f'{type(backbone).__name__}: loaded {len(state_dict)} tensors from '
        f'{_origin(checkpoint)}', logger='current')


def _origin(checkpoint: str) -> str:
    """Name of weights, with the file or address that they come from."""
    name = checkpoint.removeprefix(SCHEME)
    place = locate(name) if name != checkpoint else name
    return checkpoint if place == name else f'{checkpoint} ({place})'


def is_published(checkpoint: str) -> bool:
    """Tell whether there are weights to load, and warn if they were never published.

    Args:
        checkpoint (str): See :func:`match_pretrained`.

    Returns:
        bool: False if it is ``published://<variant>`` of a variant without any weights.
        Training then starts from scratch.
    """
    if not checkpoint.startswith(SCHEME):
        return True
    try:
        locate(checkpoint.removeprefix(SCHEME))
    except NeverPublishedError as error:
        text = f'TRAINING STARTS FROM SCRATCH: {error}.'
        lines = textwrap.wrap(text.replace('--pretrained ', '--pretrained\xa0'), 76,
                              break_on_hyphens=False, break_long_words=False)
        frame = ['', '#' * 80, *(f'# {line}' for line in lines), '#' * 80]
        print_log('\n'.join(frame).replace('\xa0', ' '), logger='current',
                  level=logging.WARNING)
        return False
    except CheckpointError:  # is raised by whoever loads them
        pass
    return True


def match_pretrained(backbone: nn.Module, checkpoint: str, prefix: str | None = None,
                     map_location: str = 'cpu', keep: bool = False
                     ) -> dict[str, Tensor]:
    """Read the weights of a backbone from a file, and check that they fit.

    Args:
        backbone (PyramidBackbone): Backbone for the weights; not changed.
        checkpoint (str): Any MMEngine checkpoint URI, ``published://`` included.
        prefix (str, optional): Prefix of the backbone's keys. Defaults to None:
            ``'backbone.'`` if there are such keys, else the whole file.
        map_location (str): Device to read the file to. Defaults to 'cpu'.
        keep (bool): Whether to keep what was read for the next call, which loads
            it. Defaults to False.

    Returns:
        dict[str, Tensor]: The weights under the backbone's own names.

    Raises:
        CheckpointError: If a tensor is missing, unexpected or of another shape.
    """
    tensors = read_state_dict(checkpoint, map_location, keep)
    return match_state_dict(backbone, tensors, checkpoint, prefix)


def read_state_dict(checkpoint: str, map_location: str = 'cpu', keep: bool = False
                    ) -> Mapping[str, Tensor]:
    """Read the state dict of a checkpoint, converted if it is a published one.

    Args:
        checkpoint (str): Any MMEngine checkpoint URI, ``published://`` included.
        map_location (str): Device to read the file to. Defaults to 'cpu'.
        keep (bool): See :func:`match_pretrained`. Defaults to False.

    Returns:
        Mapping[str, Tensor]: The tensors.

    Raises:
        CheckpointError: If there are none.
    """
    loaded = _read(checkpoint, keep, (
        read_published if checkpoint.startswith(SCHEME) else
        lambda source: CheckpointLoader.load_checkpoint(source, map_location)))
    if not isinstance(loaded, dict):
        raise CheckpointError(
            f'{checkpoint}: expected a dict of tensors, got '
            f'{type(loaded).__name__}; pass a checkpoint file')
    return stored_weights(loaded)


def match_state_dict(backbone: nn.Module, state_dict: Mapping[str, Tensor],
                     source: Any, prefix: str | None = None) -> dict[str, Tensor]:
    """Find the weights of a backbone in a state dict, and check that they fit.

    Extra tensors are ignored only for modules that the backbone lacks, such as stages
    after the last of ``out_indices``. Tensors may be missing only if they match
    ``DENSE_ONLY``. A backbone that accepts weights of a related form has a method
    ``adapt_weights``. The first convolution of RGB weights is adapted to other numbers
    of image channels as timm does it.

    Args:
        backbone (PyramidBackbone): Backbone for the weights; not changed.
        state_dict (Mapping[str, Tensor]): Weights of the backbone or of a whole model.
        source (Any): Where they come from, for messages.
        prefix (str, optional): See :func:`match_pretrained`. Defaults to None.

    Returns:
        dict[str, Tensor]: The weights under the backbone's own names.

    Raises:
        CheckpointError: If a tensor is missing, unexpected or of another shape.
    """
    weights = _select(state_dict, prefix)
    if hasattr(backbone, 'adapt_weights'):
        weights = backbone.adapt_weights(weights)
    weights = _adapt_input(backbone, weights)
    found = compare_state_dicts(backbone.state_dict(), weights)
    mismatch = Mismatch(
        [key for key in found.missing
         if not any(re.fullmatch(pattern, key) for pattern in backbone.DENSE_ONLY)],
        [key for key in found.unexpected if _has_module(backbone, key)],
        found.reshaped)
    if mismatch:
        raise CheckpointError(
            f'{source} does not fit {type(backbone).__name__}; {mismatch}. '
            "Nothing was loaded. Check arch and prefix; write the authors' own file "
            'as published://PATH')
    return weights


def _adapt_input(backbone: Any, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adapt the first convolution of weights for RGB images to ``in_channels``."""
    convs = [f'stem.{name}' for name, parameter in backbone.stem.named_parameters()
             if parameter.ndim == 4]
    name = convs[0] if convs else ''
    if (backbone.in_channels == 3 or name not in weights
            or weights[name].ndim != 4 or weights[name].shape[1] != 3):
        return weights
    if not next(backbone.parameters()).is_meta:  # not in a check
        print_log(f'{type(backbone).__name__}: adapted {name} from 3 to '
                  f'{backbone.in_channels} image channels', logger='current')
    return {**weights, name: adapt_input_conv(
        backbone.in_channels, weights[name])}


def _select(state_dict: Mapping[str, Tensor], prefix: str | None) -> dict[str, Tensor]:
    """Select the backbone's tensors and strip prefixes."""
    tensors = strip_wrappers(state_dict)
    if prefix is None:
        prefix = 'backbone.'
        if not any(key.startswith(prefix) for key in tensors):
            return tensors
    elif prefix and not prefix.endswith('.'):
        prefix += '.'
    return {key[len(prefix):]: value for key, value in tensors.items()
            if key.startswith(prefix)}


def _has_module(backbone: nn.Module, key: str) -> bool:
    """Whether the backbone has the stage, or other direct child, of ``key``."""
    name, *rest = key.split('.')
    if name == 'stages' and rest and rest[0].isdigit():
        return int(rest[0]) < len(list(backbone.get_submodule(name).children()))
    return name in dict(backbone.named_children())


def load_weights(model: nn.Module, source: str) -> None:
    """Load all weights of any model, such as a teacher, from an untrusted file.

    Args:
        model (nn.Module): Receives the weights.
        source (str): See :func:`match_weights`.

    Raises:
        CheckpointError: If the file is missing or cannot be read, or a tensor is
            missing, unexpected or of another shape.
    """
    model.load_state_dict({**model.state_dict(), **match_weights(model, source)})


def match_weights(model: nn.Module, source: str, keep: bool = False
                  ) -> dict[str, Tensor]:
    """Read all weights of any model from an untrusted file, and check that they fit.

    Args:
        model (nn.Module): What the weights are for, not changed.
        source (str): File (``.pth``, ``.safetensors``) or URL of a state dict,
            alone or nested under ``model``, ``state_dict``, ... Only tensors and
            plain data are read.
        keep (bool): Whether to keep what was read for the next call, which loads
            it. Defaults to False.

    Returns:
        dict[str, Tensor]: The weights, by the model's own names.

    Raises:
        CheckpointError: If the file is missing or cannot be read, or a tensor is
            missing, unexpected or of another shape.
    """
    content = _read(source, keep, read_untrusted)
    expected = model.state_dict()
    found = [strip_wrappers(tensors) for _, tensors in nested_state_dicts(content)] \
        if isinstance(content, Mapping) else []
    if not found:
        raise CheckpointError(f'{source} holds no tensors; pass a checkpoint file')
    mismatches = [compare_state_dicts(expected, tensors) for tensors in found]
    best = min(range(len(found)), key=lambda i: len(mismatches[i]))
    if mismatches[best]:
        raise CheckpointError(
            f'{source} does not fit {type(model).__name__}; {mismatches[best]}')
    return found[best]


def _read(source: str, keep: bool, reader: Callable[[str], Any]) -> Any:
    """Read and convert a file only once for a check and the load that follows.

    With ``keep`` the content stays until the next call, unless the file changes.
    """
    path = locate(source.removeprefix(SCHEME))
    key = (source, os.stat(path).st_mtime_ns if os.path.isfile(path) else None)
    content = _kept.pop(key) if key in _kept else reader(source)
    if keep:
        _kept[key] = content
    return content
