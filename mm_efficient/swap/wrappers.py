"""Segmentation backbones with another backbone inside, which is the one to swap."""
from collections.abc import Sequence

from ..errors import InputError
from ..runs.traversal import as_list, type_name
from .draft import Draft, Path


def fit_wrapper(draft: Draft, host: Path, channels: Sequence[int],
                new: dict) -> tuple[Path, tuple[int, ...]] | None:
    """Fit BiSeNetV1's or STDC's context path around another backbone.

    Args:
        draft (Draft): The config, changed in place.
        host (Path): The part of it that has ``backbone``.
        channels (Sequence[int]): Channels of the new backbone at strides 4, 8, 16, 32.
        new (dict): Config of the new backbone; a norm that would get no gradient is
            switched off.

    Returns:
        tuple | None: Place of the inner backbone, and ``out_indices`` of the new one.
        None if the backbone has no other one inside.

    Raises:
        InputError: If the new backbone cannot be inside.
    """
    wrapper: Path = (*host, 'backbone')
    kind = type_name(draft.get(*wrapper))
    if kind == 'BiSeNetV1':
        return (*wrapper, 'backbone_cfg'), _fit_bisenet(draft, host, channels, new)
    if kind == 'STDCContextPathNet':
        return (*wrapper, 'backbone_cfg'), _fit_stdc(draft, host, channels)
    return None


def _fit_bisenet(draft: Draft, host: Path, channels: Sequence[int],
                 new: dict) -> tuple[int, ...]:
    """It takes all four levels, but reads strides 16 and 32 only.

    Its two paths together must have the channels at stride 16.
    """
    wrapper: Path = (*host, 'backbone')
    if 'Twins' in new['type']:
        raise InputError(
            'BiSeNetV1 takes the feature maps of strides 4 and 8 without reading them, '
            'and the norms of EcoFormerTwins on these would get no gradient. Choose '
            'another variant.')
    if new.get('output_norm'):
        new.pop('output_norm')
        draft.note((*wrapper, 'backbone_cfg', 'output_norm'), True, False,
                   'norms at strides 4 and 8 would get no gradient')
    half = channels[2] // 2
    path = (*wrapper, 'context_channels')
    draft.set(path, type(draft.get(*path))([half, *channels[2:]]),
              'channels of the path and at stride 16, 32')
    path = (*wrapper, 'spatial_channels')
    spatial = draft.get(*path)
    draft.set(path, type(spatial)([*spatial[:-1], channels[2] - half]),
              'with the context path, the channels at stride 16')
    for i, head in enumerate(as_list(draft.get(*host, 'auxiliary_head'))):
        if head.get('in_index'):
            draft.set((*host, 'auxiliary_head', i, 'in_channels'), half,
                      'channels of the context path')
    return 0, 1, 2, 3


def _fit_stdc(draft: Draft, host: Path, channels: Sequence[int]) -> tuple[int, ...]:
    """It reads strides 8, 16 and 32."""
    wrapper: Path = (*host, 'backbone')
    backbone = draft.get(*wrapper)
    last = type(backbone['last_in_channels'])([channels[3], channels[2]])
    draft.set((*wrapper, 'last_in_channels'), last, 'channels at stride 32, 16')
    draft.set((*wrapper, 'ffm_cfg', 'in_channels'),
              backbone['out_channels'] + channels[1],
              'channels of the path and at stride 8')
    for i, head in enumerate(as_list(draft.get(*host, 'auxiliary_head'))):
        if head.get('in_index') == 0:
            draft.set((*host, 'auxiliary_head', i, 'in_channels'), channels[1],
                      'channels at stride 8')
    return 1, 2, 3
