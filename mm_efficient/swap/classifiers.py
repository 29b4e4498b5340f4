"""Fitting MMPretrain's necks and heads to another backbone."""
from collections.abc import Iterator, Sequence

from ..errors import InputError
from ..runs.traversal import as_list, type_name
from .draft import Draft, Path

# Heads that read what only their own backbones return, and those that take the last
# feature map; all others take one vector per image
_TIED_HEADS = ('ConformerHead', 'DeiTClsHead', 'EfficientFormerClsHead', 'LeViTClsHead',
               'VigClsHead', 'VisionTransformerClsHead')
_MAP_HEADS = ('CSRAClsHead', )
_POOLING = ('GlobalAveragePooling', 'GeneralizedMeanPooling')


def fit_classifier(draft: Draft, host: Path, channels: Sequence[int]) -> None:
    """Let neck and head of a classifier read the last feature map.

    Args:
        draft (Draft): The config, changed in place.
        host (Path): The part of it that has ``backbone``.
        channels (Sequence[int]): Channels of the new backbone at strides 4, 8, 16, 32.

    Raises:
        InputError: If the model is not a classifier.
    """
    model = draft.get(*host)
    if type_name(model) != 'ImageClassifier':
        raise InputError(
            f'model is a {type_name(model)}, not an ImageClassifier, and of what '
            'MMPretrain trains only classifiers are swapped. Choose a config of a '
            'classifier, or swap it by hand, see docs/swap.md.')
    if not isinstance(model.get('head'), dict):
        raise InputError('model has no head. Choose a config of a classifier that has '
                         'one.')
    head = model['head']
    kind = type_name(head)
    neck: dict = next(iter(as_list(model.get('neck'))), {})
    pools = type_name(neck) in _POOLING and neck.get('dim', 2) == 2
    if kind not in _MAP_HEADS and not pools:
        draft.set((*host, 'neck'), dict(type='GlobalAveragePooling'),
                  'a vector from the last feature map')
    readers = [] if kind in _TIED_HEADS else [*_readers(head, (*host, 'head'))]
    for path in readers:
        draft.set((*path, 'in_channels'), channels[-1],
                  'channels of the last feature map')
    if readers:
        return
    classes = head.get('num_classes') or model['backbone'].get('num_classes', 1000)
    new = dict(type='MultiLabelLinearClsHead' if kind == 'MultiLabelClsHead' else
               'LinearClsHead', num_classes=classes, in_channels=channels[-1])
    new.update({key: head[key] for key in ('loss', 'topk', 'thr') if key in head})
    draft.set((*host, 'head'), new, f'{kind} reads what only the old backbone returns')


def _readers(head: dict, path: Path) -> Iterator[Path]:
    """A head, or those of the tasks in it, where it sets its input channels."""
    if isinstance(head.get('in_channels'), int):
        yield path
    for task, part in (head.get('task_heads') or {}).items():
        yield from _readers(part, (*path, 'task_heads', task))
