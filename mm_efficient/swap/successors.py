"""Fitting necks and heads to the levels of another backbone."""
from collections.abc import Sequence

from ..errors import InputError
from ..runs.traversal import type_name
from .draft import Draft, Path, path_name
from .readers import DECODERS, STAGES, Reader, find_readers
from .stock import Level
from .yolo import fit_yolo

_STRIDES = tuple(4 * 2**stage for stage in STAGES)


def fit_successors(draft: Draft, host: Path, levels: Sequence[Level],
                   channels: Sequence[int]) -> tuple[int, ...]:
    """Let neck and heads read another backbone.

    Args:
        draft (Draft): The config, changed in place.
        host (Path): The part of it that has ``backbone``.
        levels (Sequence[Level]): What the stock backbone returns.
        channels (Sequence[int]): Channels of the new one at strides 4, 8, 16, 32.

    Returns:
        tuple[int, ...]: ``out_indices`` of the new backbone, the levels that are read.

    Raises:
        InputError: If they cannot be fitted.
    """
    backbone = type_name(draft.get(*host, 'backbone'))
    if backbone == 'HourglassNet':
        return _fit_hourglass(draft, host, levels, channels)
    stages = _choose_stages(draft, backbone, levels)
    if not draft.get(*host, 'neck') and draft.get(*host, 'rpn_head'):
        _insert_neck(draft, host, levels)
    readers = find_readers(draft, host, levels)
    for reader in readers:
        if not reader.in_stages:
            reader.levels = [stages[level] for level in reader.levels]
    out_indices = tuple(sorted({stage for reader in readers
                                for stage in reader.levels}))
    for reader in readers:
        _write(draft, reader, out_indices, channels)
    _fit_ssd(draft, host)
    fit_yolo(draft, host)
    _note_stride(draft, host, levels, stages)
    return out_indices


def _choose_stages(draft: Draft, backbone: str, levels: Sequence[Level]) -> list[int]:
    """The stage of the new backbone in place of each level of the old one."""
    if draft.get('default_scope') != 'mmseg':
        return _stages_by_stride(levels)
    if backbone in DECODERS:
        return [_nearest(level.stride) for level in levels]
    return _stages_in_segmentation(levels)


def _note_stride(draft: Draft, host: Path, levels: Sequence[Level],
                 stages: Sequence[int]) -> None:
    deepest = max((level.stride, i) for i, level in enumerate(levels))[1]
    if _STRIDES[stages[deepest]] > levels[deepest].stride:
        draft.note((*host, 'backbone'), f'stride {levels[deepest].stride}',
                   f'stride {_STRIDES[stages[deepest]]}',
                   'the last levels of the old backbone are dilated; these are not, '
                   'so that the output is coarser')


def _nearest(stride: int) -> int:
    return min(STAGES, key=lambda stage: abs(_STRIDES[stage] - stride))


def _stages_by_stride(levels: Sequence[Level]) -> list[int]:
    """Stages with the strides that anchors, RoIs and necks count on."""
    strides = [level.stride for level in levels]
    if not set(strides) <= set(_STRIDES) or len(set(strides)) < len(strides):
        raise InputError(
            f'The stock backbone returns strides {strides}; those of mm_efficient have '
            'one feature map each at 4, 8, 16 and 32. Choose another algorithm, or a '
            'config of this one with such strides.')
    return [_STRIDES.index(stride) for stride in strides]


def _stages_in_segmentation(levels: Sequence[Level]) -> list[int]:
    """Stages by stride in a pyramid, else by depth, the last level the last stage."""
    strides = [level.stride for level in levels]
    if strides[-1] == 32 and strides == [s for s in _STRIDES if s in strides]:
        return [_STRIDES.index(stride) for stride in strides]
    if len(levels) > len(STAGES):
        raise InputError(
            f'The stock backbone returns {len(levels)} feature maps, of strides '
            f'{strides}; those of mm_efficient return one each at 4, 8, 16 and 32. '
            'Choose another algorithm.')
    return [*STAGES[-len(levels):]]


def _write(draft: Draft, reader: Reader, out_indices: tuple[int, ...],
           channels: Sequence[int]) -> None:
    """Set channels and positions of a reader in the types of the old ones."""
    def like(old: object, values: list[int]) -> object:
        return type(old)(values) if isinstance(old, (list, tuple)) else values[0]

    names = ', '.join(str(_STRIDES[stage]) for stage in reader.levels)
    path = (*reader.path, reader.key)
    before = draft.get(*path)
    draft.set(path, like(draft.get(*path), [channels[i] for i in reader.levels]),
              f'channels at stride {names}')
    if draft.get(*reader.path, 'num_convs') == 0 \
            and draft.get(*reader.path, 'channels') == before:
        draft.set((*reader.path, 'channels'), draft.get(*path),
                  'without convolutions, the same as in_channels')
    if reader.index:
        path = (*reader.path, reader.index)
        positions = [out_indices.index(stage) for stage in reader.levels]
        draft.set(path, like(draft.get(*path), positions), 'positions in out_indices')


def _fit_ssd(draft: Draft, host: Path) -> None:
    """Repeat the channels of SSD's neck where it and its head have them again."""
    neck = draft.get(*host, 'neck')
    if type_name(neck if isinstance(neck, dict) else None) != 'SSDNeck':
        return
    first = tuple(neck['in_channels'])
    for path in ((*host, 'neck', 'out_channels'), (*host, 'bbox_head', 'in_channels')):
        old = draft.get(*path)
        draft.set(path, type(old)([*first, *old[len(first):]]),
                  'the first ones are those of the backbone')


def _insert_neck(draft: Draft, host: Path, levels: Sequence[Level]) -> None:
    """Keep the channels that the heads of a two-stage detector without neck expect."""
    if len(levels) != 1:
        raise InputError(
            f'{path_name(host)} has no neck, and heads that read {len(levels)} feature '
            'maps. Choose a config with a neck.')
    draft.set((*host, 'neck'),
              dict(type='ChannelMapper', in_channels=[levels[0].channels],
                   out_channels=levels[0].channels, kernel_size=1, act_cfg=None,
                   num_outs=1),
              'the heads are built for the channels of the old backbone')


def _fit_hourglass(draft: Draft, host: Path, levels: Sequence[Level],
                   channels: Sequence[int]) -> tuple[int, ...]:
    """Feed CornerNet from the decoder that CenterNet has on a ResNet."""
    width = levels[-1].channels
    draft.set((*host, 'neck'),
              dict(type='CTResNetNeck', in_channels=channels[-1],
                   num_deconv_filters=(width, width, width),
                   num_deconv_kernels=(4, 4, 4), use_dcn=False),
              'a decoder from stride 32 to 4 in place of the hourglass')
    draft.set((*host, 'bbox_head', 'num_feat_levels'), 1,
              f'one feature map instead of {len(levels)} hourglasses')
    return (STAGES[-1], )
