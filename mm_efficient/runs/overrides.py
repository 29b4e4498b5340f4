"""Settings without the effect they seem to have: overrides, length, best metric."""
import inspect
import logging
import re
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import METRICS
from mmengine.runner import Runner

from ..errors import InputError, did_you_mean
from .traversal import as_list, split_metrics, type_name

# Read by MMEngine's runner beside its arguments, or by tools
MORE_KEYS = ('runner_type', 'model_wrapper_cfg', 'sync_bn', 'compile',
             'find_unused_parameters', 'activation_checkpointing',
             'efficient_conv_bn_eval', 'tta_model', 'tta_pipeline')
# Former special overrides, and the arguments that replace them
FORMER = dict(
    data_root=('--data-root FOLDER', 'train_dataloader.dataset.data_root'),
    num_classes=('--num-classes N', 'model.head.num_classes'))


def check_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Check that overrides have an effect.

    Args:
        cfg (Config): The config before they are merged into it.
        options (Mapping[str, Any]): Overrides by dotted key.

    Raises:
        InputError: If nothing reads a key.
    """
    read = {*inspect.signature(Runner).parameters, *MORE_KEYS} - {'cfg'}
    for key, value in options.items():
        name, _, rest = key.partition('.')
        if key in FORMER:
            flag, full_key = FORMER[key]
            raise InputError(
                f'{key}={value} in --cfg-options would change nothing: no part of the '
                f'config reads that variable. Use {flag}, in Python {key}=..., or a '
                f'full key such as {full_key}.')
        if name not in cfg and name not in read:
            raise InputError(
                f'--cfg-options {key}: the config has no {name!r}, and nothing would '
                f'read it{did_you_mean(name, {*read, *cfg})}.')
        if name not in read and 'runner_type' not in cfg:
            print_log(
                f'--cfg-options {key}: {name} is a variable of the config file, which '
                'has been read already. Only code of your own would see the change; '
                'name what uses it, such as train_dataloader.dataset.pipeline',
                logger='current', level=logging.WARNING)
        elif rest:
            _warn_of_new_key(cfg, key)


def _warn_of_new_key(cfg: Config, key: str) -> None:
    """Warn of a key in a part of the config whose keys nothing checks."""
    node: Any = cfg
    for part in key.split('.'):
        if isinstance(node, dict) or node is cfg:
            if part not in node:
                if node is cfg:
                    return  # the runner reads it
                break
            node = node[part]
        elif isinstance(node, (list, tuple)) and part in map(str, range(len(node))):
            node = node[int(part)]
        else:
            return  # the merge says what is wrong
    else:
        return
    if 'type' not in node:  # classes reject arguments that they do not know
        print_log(f'--cfg-options {key}: {part!r} is new in this config'
                  f'{did_you_mean(part, node)}; check that something reads it',
                  logger='current', level=logging.WARNING)


def check_length(cfg: Config) -> None:
    """Check that a training has at least one epoch or iteration.

    Args:
        cfg (Config): Config of the run.

    Raises:
        InputError: If not.
    """
    settings = cfg.get('train_cfg') or {}
    if not isinstance(settings, dict):
        raise InputError(f'train_cfg is {settings!r}; expected a dict.')
    for key in ('max_epochs', 'max_iters'):
        value = settings.get(key)
        if value is not None and not (isinstance(value, (int, float)) and value >= 1):
            raise InputError(f'train_cfg.{key} is {value!r}; expected a positive '
                             'integer.')
    interval = settings.get('val_interval', 1)
    if not isinstance(interval, (int, float)) or interval == 0:
        raise InputError(f'train_cfg.val_interval is {interval!r}; expected a positive '
                         'integer. For a training without validation set val_cfg, '
                         'val_dataloader and val_evaluator to None.')


def _gives(metric: dict, name: str) -> bool:
    """Whether a metric may give a value of this name; False if it surely does not."""
    kind = type_name(metric)
    if kind == 'Accuracy' and re.fullmatch(r'top\d+', name):
        return int(name[3:]) in as_list(metric.get('topk', 1))
    if kind == 'CocoMetric' and name.startswith(('bbox_', 'segm_')):
        return name.partition('_')[0] in as_list(metric.get('metric', 'bbox'))
    if kind == 'IoUMetric' and name in ('mIoU', 'mDice', 'mFscore'):
        return name in metric.get('iou_metrics', ['mIoU'])
    return True


def check_save_best(cfg: Config) -> None:
    """Check that the metric of the best checkpoint is one of the evaluator's.

    Args:
        cfg (Config): Config of a training run. ``save_best='auto'``, which takes the
            first metric, is replaced where the first one is of a single class.

    Raises:
        InputError: If the evaluator has no such metric.
    """
    hook = (cfg.get('default_hooks') or {}).get('checkpoint') or {}
    metrics = split_metrics(cfg, 'val')
    classes = [METRICS.get(f'{cfg.default_scope}.{type_name(metric)}')
               for metric in metrics]
    if not hook.get('save_best') or not metrics or None in classes:
        return
    prefixes = [metric.get('prefix') or kind.default_prefix
                for metric, kind in zip(metrics, classes)]
    if hook['save_best'] == 'auto':
        if metrics[0].get('classwise'):
            kind = as_list(metrics[0].get('metric', 'bbox'))[0]
            hook['save_best'] = f'{prefixes[0]}/{kind}_mAP'
        return
    for key in as_list(hook['save_best']):
        prefix = key.rpartition('/')[0] or None
        given = [metric for metric, own in zip(metrics, prefixes) if own == prefix]
        if not any(_gives(metric, key.rpartition('/')[2]) for metric in given):
            names = [f'{type_name(metric)} ({prefix}/...)' if prefix else
                     type_name(metric) for metric, prefix in zip(metrics, prefixes)]
            raise InputError(
                f'default_hooks.checkpoint.save_best is {key!r}, which val_evaluator, '
                f'{", ".join(names)}, does not give. Name one of its metrics, or None.')
