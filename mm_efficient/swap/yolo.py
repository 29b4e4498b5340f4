"""What MMYOLO has of its own: factors of widths, and groups of parameters."""
import math

from ..errors import InputError
from ..runs.traversal import type_name
from .draft import Draft, Path

# Necks that round widths up to multiples of 8, and those that return what they take
_ROUNDED = ('YOLOv5PAFPN', 'YOLOv7PAFPN', 'YOLOv8PAFPN')
_SAME_WIDTH = ('YOLOv5PAFPN', 'YOLOv8PAFPN')
_CONSTRUCTORS = ('YOLOv5OptimizerConstructor', 'YOLOv7OptimWrapperConstructor')


def fit_yolo(draft: Draft, host: Path) -> None:
    """Let a neck of MMYOLO take its channels as they are, without ``widen_factor``.

    Args:
        draft (Draft): The config, changed in place. The neck has the channels of the
            new backbone already.
        host (Path): The part of it that has ``backbone``.

    Raises:
        InputError: If the neck cannot take the channels.
    """
    path = (*host, 'neck')
    neck = draft.get(*path)
    if draft.get('default_scope') != 'mmyolo' or not isinstance(neck, dict):
        return
    kind, channels = type_name(neck), list(neck['in_channels'])
    odd = [width for width in channels if width % 8]
    if kind in _ROUNDED and odd:
        raise InputError(
            f'{kind} takes multiples of 8 channels; this backbone returns {channels}. '
            'Choose another variant.')
    factor = neck.get('widen_factor', 1.0)
    draft.set((*path, 'widen_factor'), 1.0, 'in_channels are those of the backbone')
    if kind not in _SAME_WIDTH:
        out = neck['out_channels']
        draft.set((*path, 'out_channels'),
                  _widen(out, factor, kind) if isinstance(out, int) else
                  [_widen(width, factor, kind) for width in out],
                  f'as before, with widen_factor {factor}')
        return
    reason = 'the neck returns as many channels as it takes'
    module = (*host, 'bbox_head', 'head_module')
    draft.set((*path, 'out_channels'), channels, reason)
    draft.set((*module, 'in_channels'), channels, reason)
    draft.set((*module, 'widen_factor'), 1.0, reason)


def _widen(width: int, factor: float, neck: str) -> int:
    """A width as MMYOLO computes it."""
    if neck in _ROUNDED:
        return math.ceil(width * factor / 8) * 8
    return int(width * factor)


def replace_yolo_groups(draft: Draft) -> None:
    """Optimize all parameters.

    MMYOLO's constructors group the weights and biases of modules and leave out other
    parameters, such as layer scales and position tables. Its schedule warms the third
    group up from a high learning rate, because that has the biases.

    Args:
        draft (Draft): Changed in place.
    """
    wrapper = draft.get('optim_wrapper') or {}
    if wrapper.get('constructor') not in _CONSTRUCTORS:
        return
    draft.set(('optim_wrapper', 'constructor'), 'DefaultOptimWrapperConstructor',
              'the old one leaves out parameters that are no weight or bias')
    optimizer = {key: value for key, value in wrapper['optimizer'].items()
                 if key != 'batch_size_per_gpu'}
    draft.set(('optim_wrapper', 'optimizer'), optimizer,
              'batch_size_per_gpu is for the old constructor alone')
    if wrapper.get('paramwise_cfg'):
        draft.set(('optim_wrapper', 'paramwise_cfg'), None,
                  'goes with the old constructor')
    hook: Path = ('default_hooks', 'param_scheduler')
    if type_name(draft.get(*hook)) == 'YOLOv5ParamSchedulerHook':
        draft.set((*hook, 'warmup_bias_lr'), 0.0,
                  'the third group of parameters is no longer that of the biases')
