"""What a stock config has: where its backbone is, and which levels it returns."""
import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor

from ..errors import ExecutionError, InputError
from ..runs.model_checks import build_on_meta, is_ours
from ..runs.traversal import type_name
from .draft import Path, look_up, path_name

TRIAL_SIZE = 256  # side of the blank image in pixels
# Settings that change how a backbone computes, but not the shape of what it returns.
# Without them it may run where operators or weights are missing.
_SHAPELESS = ('dcn', 'stage_with_dcn', 'plugins', 'norm_cfg', 'init_cfg', 'pretrained',
              'with_cp')

_TIED = {
    'DetectoRS_ResNet': 'its recursive pyramid feeds the neck back into a ResNet',
    'DetectoRS_ResNeXt': 'its recursive pyramid feeds the neck back into a ResNet',
    'TridentResNet': 'its three branches share the weights of a ResNet stage, and its '
                     'heads expect all three',
    'ReResNet': 'it and its neck are equivariant to rotation',
    'DDRNet': 'its head reads two branches that only DDRNet has',
    'PIDNet': 'its head reads three branches that only PIDNet has',
    'DPTHead': 'it reassembles tokens of a vision transformer',
    'LRASPPHead': 'it averages over windows of 49 x 49 positions, more than a stride '
                  'of 32 leaves of its crops',
    'MultimodalEncoderDecoder': 'its adapter is attached to the layers of CLIP',
}

# Channels and strides of stock backbones that need packages or operators to run
_TABLE = {
    'VPD': ((320, 8), (640, 16), (1280, 32), (1280, 64)),
}


class Level(NamedTuple):
    """A feature map of the stock backbone."""

    channels: int
    stride: int


def find_backbone(cfg: dict) -> Path:
    """Find the model with a backbone inside wrappers such as ``SoftTeacher``.

    Args:
        cfg (dict): Complete config.

    Returns:
        Path: Of the part that has ``backbone``, such as ('model', 'detector').

    Raises:
        InputError: If there is none, or it cannot be swapped.
    """
    found = next(_with_backbone(cfg['model'], ('model', )), None)
    parts = [*_typed(cfg['model'])]
    for kind, reason in _TIED.items():
        if kind in parts:
            raise InputError(f'{kind} works with its own backbone only: {reason}. '
                             'Choose another algorithm.')
    if found is None:
        raise InputError(
            f'model, a {type_name(cfg["model"])}, has no backbone. Choose a config of '
            'a detector, a segmentor or a classifier.')
    backbone = look_up(cfg, (*found, 'backbone'))
    if is_ours(backbone.get('type')):
        raise InputError(
            f'{path_name(found)}.backbone is {type_name(backbone)} of mm_efficient '
            'already. Start from the config that it was made from, or change arch.')
    return found


def _with_backbone(node: Any, path: Path) -> Iterator[Path]:
    if isinstance(node, dict):
        if isinstance(node.get('backbone'), dict) and 'type' in node['backbone']:
            yield path
        for key, value in node.items():
            yield from _with_backbone(value, (*path, key))


def _typed(node: Any) -> Iterator[str]:
    """Type names in a model, without those of its data and loss settings."""
    if isinstance(node, dict):
        yield type_name(node)
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _typed(item)


def find_levels(backbone: dict, scope: str) -> list[Level]:
    """Find channels and strides by running a backbone on a blank image.

    It runs without data, on the meta device, or on the CPU if it needs values.

    Args:
        backbone (dict): Its config.
        scope (str): Package of the config.

    Returns:
        list[Level]: What it returns, in order.

    Raises:
        ExecutionError: If it does not run, and is not known.
    """
    kind = type_name(backbone)
    if kind in _TABLE:
        return [Level(*level) for level in _TABLE[kind]]
    settings = {key: value for key, value in backbone.items()
                if key not in _SHAPELESS}
    size = settings.get('img_size') or TRIAL_SIZE
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    error: Exception | None = None
    with DefaultScope.overwrite_default_scope(scope), torch.no_grad():
        for device in ('meta', 'cpu'):
            try:
                build = build_on_meta if device == 'meta' else MODELS.build
                model = build(copy.deepcopy(settings))
                model.eval()  # some return None
                maps = model(torch.zeros(1, settings.get('in_channels', 3), height,
                                         width, device=device))
                return _levels(maps, height)
            except Exception as raised:  # whatever the backbone raises
                error = error or raised
    raise ExecutionError(
        f'The stock backbone, {kind}, does not run on a blank image '
        f'({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}), so '
        'that its channels and strides are unknown. Check that the stock config runs.')


def _levels(maps: Any, height: int) -> list[Level]:
    if isinstance(maps, Tensor):
        maps = [maps]
    return [Level(x.shape[1], round(height / x.shape[2])) for x in maps]
