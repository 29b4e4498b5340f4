"""Which levels of a backbone are read, by which neck or heads, and under which keys."""
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import InputError
from ..runs.traversal import as_list, type_name
from .draft import Draft, Path, path_name
from .stock import Level

# Segmentation backbones that end with a decoder of their own, at a high resolution
DECODERS = ('BiSeNetV2', 'ERFNet', 'FastSCNN', 'UNet')
STAGES = (0, 1, 2, 3)  # strides 4, 8, 16, 32


@dataclass
class Reader:
    """A part of the model that takes feature maps of the backbone.

    Args:
        path (Path): The part.
        levels (list[int]): Positions of the levels it reads, in its order; stages
            of the new backbone instead if ``in_stages``.
        key (str): Setting with their channels. Defaults to 'in_channels'.
        index (str): Setting with their positions, '' if it reads whatever comes in.
            Defaults to ''.
        in_stages (bool): See ``levels``. Defaults to False.
    """

    path: Path
    levels: list[int]
    key: str = 'in_channels'
    index: str = ''
    in_stages: bool = False


def find_readers(draft: Draft, host: Path, levels: Sequence[Level]) -> list[Reader]:
    """Find what reads the feature maps of the stock backbone.

    Args:
        draft (Draft): The config. Parts that no pyramid can feed are changed here.
        host (Path): The part of it that has ``backbone``.
        levels (Sequence[Level]): What the backbone returns.

    Returns:
        list[Reader]: At least one.

    Raises:
        InputError: If nothing is known to read them.
    """
    neck = draft.get(*host, 'neck')
    if isinstance(neck, (list, tuple)):
        readers = _neck_readers(draft, (*host, 'neck', 0), levels)
    elif isinstance(neck, dict):
        readers = _neck_readers(draft, (*host, 'neck'), levels)
    else:
        readers = _head_readers(draft, host, levels)
    if not readers:
        raise InputError(
            f'{path_name(host)} has no neck or head with in_channels: what reads the '
            'backbone is unknown. Swap it by hand, see docs/swap.md.')
    return readers


def _neck_readers(draft: Draft, path: Path, levels: Sequence[Level]) -> list[Reader]:
    neck, host = draft.get(*path), path[:path.index('neck')]
    kind = type_name(neck)
    if kind == 'Feature2Pyramid':
        draft.set((*host, 'neck'), None, 'it makes a pyramid of a plain transformer; '
                  'the backbone is one')
        return _head_readers(draft, host, levels)
    if 'in_channels' not in neck:  # global pooling
        return _head_readers(draft, host, levels)
    order = _order(neck['in_channels'], levels)
    if kind == 'MultiLevelNeck':
        draft.set((*path, 'scales'), [1] * len(neck['scales']),
                  'the levels are a pyramid already')
    elif kind == 'MLANeck':
        _resample_before(draft, path, levels)
        return [Reader((*host, 'neck', 0), order)]
    readers = [Reader(path, _cut(draft, path, order))]
    if kind == 'JPU':  # hands on all levels but the last
        readers += [reader for reader in _segmentation_heads(draft, host, len(levels))
                    if max(reader.levels) < len(levels) - 1]
    return readers


def _order(in_channels: Any, levels: Sequence[Level]) -> list[int]:
    """Levels that a neck reads, in its order."""
    if isinstance(in_channels, int):
        return [len(levels) - 1]
    found = [level.channels for level in levels]
    forward = list(range(len(levels)))
    if list(in_channels) == found[::-1] and found != found[::-1]:
        return forward[::-1]
    if len(in_channels) == len(found):
        return forward
    raise InputError(
        f'The neck expects {len(in_channels)} feature maps, and the stock backbone '
        f'returns {len(found)}. Check that the stock config runs.')


def _cut(draft: Draft, path: Path, order: list[int]) -> list[int]:
    """Leave out the levels that a neck skips."""
    neck = draft.get(*path)
    start, end = neck.get('start_level', 0), neck.get('end_level', -1)
    kept = order[start:] if end == -1 else order[start:end + 1]
    reason = 'levels that are not read are not returned'
    if start:
        draft.set((*path, 'start_level'), 0, reason)
    if kept[-1] != order[-1]:
        draft.set((*path, 'end_level'), -1, reason)
    return kept


def _resample_before(draft: Draft, path: Path, levels: Sequence[Level]) -> None:
    """Bring a pyramid to the one stride that SETR's neck adds levels at."""
    neck, host = draft.get(*path), path[:path.index('neck')]
    pyramid = dict(type='MultiLevelNeck', in_channels=list(neck['in_channels']),
                   out_channels=neck['in_channels'][-1],
                   scales=[4 * 2**stage / levels[-1].stride for stage in STAGES])
    draft.set((*host, 'neck'), [pyramid, neck],
              f'the second neck adds levels, all at stride {levels[-1].stride}')


def _head_readers(draft: Draft, host: Path, levels: Sequence[Level]) -> list[Reader]:
    """Readers of a model without a neck."""
    if draft.get(*host, 'decode_head'):
        return _segmentation_heads(draft, host, len(levels))
    readers = []
    for name, head in draft.get(*host).items():
        if (name.endswith('head') and isinstance(head, dict)
                and head.get('in_channels') is not None):
            order = _order(head['in_channels'], levels)
            readers.append(Reader((*host, name), order))
    return readers


def _segmentation_heads(draft: Draft, host: Path, number: int) -> list[Reader]:
    readers: list[Reader] = []
    decoder = type_name(draft.get(*host, 'backbone')) in DECODERS
    for name in ('decode_head', 'auxiliary_head'):
        head = draft.get(*host, name)
        paths: list[Path] = [(*host, name)]
        if isinstance(head, (list, tuple)):
            paths = [(*host, name, i) for i in range(len(head))]
        for path in paths:
            if draft.get(*path) is None:
                continue
            if draft.get(*path, 'kernel_generate_head'):  # K-Net
                path = (*path, 'kernel_generate_head')
            if decoder and name == 'decode_head':
                readers.append(_read_all(draft, path))
            else:
                readers += _segmentation_head(draft, path, number)
    return readers


def _read_all(draft: Draft, path: Path) -> Reader:
    """Let a head read the whole pyramid, as FCN on HRNet does."""
    reason = ('in place of the decoder in the old backbone, the head reads all levels '
              'at the resolution of the first')
    draft.set((*path, 'input_transform'), 'resize_concat', reason)
    draft.set((*path, 'in_index'), [*STAGES], reason)
    draft.set((*path, 'in_channels'), [0] * len(STAGES), reason)
    return Reader(path, [*STAGES], index='in_index', in_stages=True)


def _segmentation_head(draft: Draft, path: Path, number: int) -> list[Reader]:
    head = draft.get(*path)
    if head.get('in_channels') is None:
        return []
    readers = []
    if isinstance(head['in_channels'], int):
        levels = as_list(head.get('in_index', -1))
    else:
        levels = as_list(head.get('in_index', list(range(len(head['in_channels'])))))
    if type_name(head) == 'EncHead' and not head.get('add_lateral'):
        levels = levels[-1:]  # it selects all and reads the last
    index = 'in_index' if 'in_index' in head else ''
    readers.append(Reader(path, [level % number for level in levels], index=index))
    if head.get('c1_in_channels'):  # reads the first feature map
        readers.append(Reader(path, [0], key='c1_in_channels'))
    return readers
