"""Arguments of what a config builds beside the model: known, and of use.

MMEngine finds these faults too, but after it has filled the work dir.
"""
import copy
import inspect
import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from mmengine.config import Config
from mmengine.hooks import CheckpointHook
from mmengine.optim import OptimWrapper, _ParamScheduler
from mmengine.registry import (
    DATA_SAMPLERS,
    DATASETS,
    HOOKS,
    LOG_PROCESSORS,
    LOOPS,
    METRICS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    OPTIMIZERS,
    PARAM_SCHEDULERS,
    TRANSFORMS,
    VISUALIZERS,
    DefaultScope,
    Registry,
)
from mmengine.runner import Runner

from ..errors import InputError, did_you_mean, one_line, short
from .traversal import PLAIN, as_list, leaf_datasets, split_metrics, type_name

Part = tuple[str, Any, Registry]
# Keys that are read before a class gets the others
READ_BEFORE = {'type', '_scope_', 'priority', 'convert_to_iter_based', 'constructor',
               'paramwise_cfg', 'optimizer'}

# Packages whose type hints were compared with what their classes take, and the one that
# was wrong: a number or a dict, too
HINTED = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmseg', 'torch', 'mm_efficient')
WRONG_HINTS = ('loss_scale', )
# What entries of a data set may be, and how messages call it
NONE = type(None)
Kinds = dict[str, tuple[Any, str]]
DATASET_KINDS: Kinds = dict(
    data_root=((str, NONE), 'path'), ann_file=((str, list, tuple, NONE), 'path'),
    data_prefix=((str, dict, list, tuple, NONE), 'path or a dict of paths'),
    metainfo=((dict, NONE), 'dict'), pipeline=((list, tuple, NONE), 'list of dicts'))


def check_kinds(settings: Mapping[str, Any], kinds: Kinds, prefix: str = '') -> None:
    """Check what kinds of values settings have; objects may be anything.

    Args:
        settings (Mapping): A config or a part of one.
        kinds (dict): Key -> types that its value may have, and what a message calls it.
        prefix (str): Of keys in messages. Defaults to ''.

    Raises:
        InputError: If a value is of another kind.
    """
    for key, (types, expected) in kinds.items():
        value = settings.get(key)
        if isinstance(value, (*PLAIN, dict, NONE)) and not isinstance(value, types):
            raise InputError(f'{prefix}{key} is {short(value)}; expected a {expected}.')


def check_arguments(cfg: Config, splits: Iterable[str]) -> None:
    """Check types and arguments of hooks, data, metrics, optimizer and schedules.

    Args:
        cfg (Config): Config of the run.
        splits (Iterable[str]): What it reads, any of 'train', 'val' and 'test'.

    Raises:
        InputError: If a type is unknown, its class does not know an argument, or a
            number is of no use.
    """
    splits = [split for split in splits if cfg.get(f'{split}_dataloader')]
    check_datasets(cfg, splits)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        for key, settings, registry in _parts(cfg, splits):
            _check_part(key, settings, registry)
        _check_drawing(cfg)
        if 'train' in splits:
            _check_optimizer(cfg.optim_wrapper, cfg.get('param_scheduler'))


def check_datasets(cfg: Config, splits: Iterable[str]) -> None:
    """Check data loaders, and types and arguments of data sets and their pipelines.

    Args:
        cfg (Config): Config of the run.
        splits (Iterable[str]): Any of 'train', 'val' and 'test'.

    Raises:
        InputError: If a split is missing, or as :func:`check_arguments`.
    """
    for split in splits:
        _check_loader(cfg, split)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            for key, settings, registry in _parts_of_data(cfg, split):
                _check_part(key, settings, registry)


def _parts(cfg: Config, splits: Iterable[str]) -> Iterator[Part]:
    """Everything else that MMEngine builds, with its dotted key."""
    for name, hook in (cfg.get('default_hooks') or {}).items():
        yield f'default_hooks.{name}', hook, HOOKS
    for i, hook in enumerate(cfg.get('custom_hooks') or []):
        yield f'custom_hooks.{i}', hook, HOOKS
    yield 'visualizer', cfg.get('visualizer'), VISUALIZERS
    log_processor = {'type': 'LogProcessor', **(cfg.get('log_processor') or {})}
    yield 'log_processor', log_processor, LOG_PROCESSORS
    for split in splits:
        yield from _parts_of_split(cfg, split)
    if 'train' in splits:
        yield from _parts_of_optimization(cfg)


def _parts_of_data(cfg: Config, split: str) -> Iterator[Part]:
    key = f'{split}_dataloader.dataset'
    for dataset in leaf_datasets(cfg[f'{split}_dataloader']['dataset']):
        yield key, dataset, DATASETS
        for i, step in enumerate(as_list(dataset.get('pipeline'))):
            yield f'{key}.pipeline.{i}', step, TRANSFORMS


def _parts_of_split(cfg: Config, split: str) -> Iterator[Part]:
    loader, key = cfg[f'{split}_dataloader'], f'{split}_dataloader'
    for name in ('sampler', 'batch_sampler'):
        yield f'{key}.{name}', loader.get(name), DATA_SAMPLERS
    yield f'{split}_cfg', _loop(cfg.get(f'{split}_cfg'), split), LOOPS
    for metric in split_metrics(cfg, split):
        yield f'{split}_evaluator', metric, METRICS


def _loop(settings: Any, split: str) -> Any:
    """A loop with the type that MMEngine's runner gives it."""
    if not isinstance(settings, dict) or 'type' in settings:
        return settings
    if split != 'train':
        return {'type': f'{split.title()}Loop', **settings}
    settings = dict(settings)
    by_epoch = settings.pop('by_epoch', None)
    if by_epoch is None:  # the runner says what is missing
        return settings
    return {'type': f'{"Epoch" if by_epoch else "Iter"}BasedTrainLoop', **settings}


def _parts_of_optimization(cfg: Config) -> Iterator[Part]:
    wrapper = cfg.optim_wrapper
    if isinstance(wrapper, dict) and isinstance(wrapper.get('optimizer'), dict):
        yield ('optim_wrapper', {'type': 'OptimWrapper', **wrapper}, OPTIM_WRAPPERS)
        yield 'optim_wrapper.optimizer', wrapper['optimizer'], OPTIMIZERS
        constructor = wrapper.get('constructor')
        if constructor:
            yield ('optim_wrapper.constructor', dict(type=constructor),
                   OPTIM_WRAPPER_CONSTRUCTORS)
    schedulers = cfg.get('param_scheduler')
    if not isinstance(schedulers, dict) or 'type' in schedulers:
        for i, scheduler in enumerate(as_list(schedulers)):
            yield f'param_scheduler.{i}', scheduler, PARAM_SCHEDULERS


def _check_part(key: str, settings: Any, registry: Registry) -> None:
    if isinstance(settings, PLAIN):
        name = settings if isinstance(settings, str) else 'NAME'
        raise InputError(f'{key} is {short(settings)}; expected a dict, such as '
                         f'dict(type={name!r}).')
    if not isinstance(settings, dict) or 'type' not in settings:
        return
    kind = settings['type']
    if not isinstance(kind, str) and not callable(kind):
        raise InputError(f'{key}.type is {short(kind)}; expected the name of a class.')
    if isinstance(kind, str):
        with registry.switch_scope_and_registry(settings.get('_scope_')) as found:
            try:
                kind = found.get(kind)
            except Exception as error:
                raise InputError(f'{key}.type is {kind!r}, which cannot be imported: '
                                 f'{error}') from None
            if kind is None:
                names = {*found.module_dict, *registry.module_dict}
                raise InputError(
                    f'{key}.type is {settings["type"]!r}, which is not registered in '
                    f'{found.scope}{did_you_mean(settings["type"], names)}. Name the '
                    'module that registers it in custom_imports.')
    known, all_known = _known_arguments(kind)
    unknown = [name for name in settings if name not in {*known, *READ_BEFORE}]
    if all_known and unknown:
        raise InputError(
            f'{key}: {getattr(kind, "__name__", kind)} has no argument {unknown[0]!r}'
            f'{did_you_mean(unknown[0], known)}.')
    package = getattr(kind, '__module__', '').partition('.')[0]
    for name, value in settings.items() if package in HINTED else ():
        if name in known and name not in (*READ_BEFORE, *WRONG_HINTS):
            _check_value(f'{key}.{name}', value, known[name])


def _check_value(key: str, value: Any, parameter: inspect.Parameter) -> None:
    """Check a value of an argument that takes only numbers, or only text."""
    kind = parameter.annotation
    if kind is parameter.empty:
        kind = type(parameter.default)
    kinds = [leaf for leaf in _leaves(kind) if leaf not in (type(None), ...)]
    for each in as_list(value) if kinds else ():
        if all(leaf in (int, float) for leaf in kinds) and isinstance(each, str):
            raise InputError(f'{key} is {short(value)}; expected a number.')
        if all(leaf in (str, Path) for leaf in kinds) and isinstance(
                each, (int, float)):
            raise InputError(f'{key} is {short(value)}; expected text.')
    if key.endswith('.fp16') and isinstance(value, str):  # autocast takes no text
        raise InputError(f'{key} is {value!r}; expected True or False.')


def _leaves(kind: Any) -> Iterator[Any]:
    """Types in a type hint: int and None of ``Sequence[int] | None``."""
    arguments = get_args(kind)
    if not arguments:
        yield kind
    for each in arguments:
        yield from _leaves(each)


def _known_arguments(kind: Any) -> tuple[dict[str, inspect.Parameter], bool]:
    """Arguments of a class or function, and whether it takes no others."""
    sources = [kind]
    if isinstance(kind, type):
        sources = [vars(base)['__init__'] for base in kind.__mro__[:-1]
                   if '__init__' in vars(base)]
        if issubclass(kind, CheckpointHook):
            sources.append(Runner.save_checkpoint)  # which gets the others
    known: dict[str, inspect.Parameter] = {}
    takes_others = []
    for source in sources:
        try:
            parameters = inspect.signature(source).parameters
        except (TypeError, ValueError):
            return {}, False
        known = {**parameters, **known}
        takes_others.append(any(p.kind is p.VAR_KEYWORD for p in parameters.values()))
        if not takes_others[-1]:
            break
    passes_on = isinstance(kind, type) and issubclass(
        kind, (CheckpointHook, _ParamScheduler))
    return known, bool(known) and (passes_on or not takes_others[0])


def _check_drawing(cfg: Config) -> None:
    hook = (cfg.get('default_hooks') or {}).get('visualization')
    if isinstance(hook, dict) and (hook.get('draw') or hook.get('enable')) \
            and hook.get('interval') == 0:
        raise InputError('default_hooks.visualization.interval is 0; expected a '
                         'positive integer, or draw (MMPretrain: enable) to be False.')


def _check_loader(cfg: Config, split: str) -> None:
    loader = cfg.get(f'{split}_dataloader')
    if loader is None:
        raise InputError(f'The config sets no {split}_dataloader.')
    if not isinstance(loader, dict) or not isinstance(loader.get('dataset'), dict):
        raise InputError(f'{split}_dataloader is {short(loader)}; expected a dict '
                         'with dataset, sampler and batch_size.')
    for key, least in (('batch_size', 1), ('num_workers', 0)):
        value = loader.get(key, least)
        if not isinstance(value, int) or value < least:
            raise InputError(f'{split}_dataloader.{key} is {value!r}; expected an '
                             f'integer of at least {least}.')
    for dataset in leaf_datasets(loader['dataset']):
        check_kinds(dataset, DATASET_KINDS, f'{split}_dataloader.dataset.')


def _check_optimizer(wrapper: Any, schedulers: Any = None) -> None:
    """Build the optimizer for a single parameter, and try its schedules."""
    if not isinstance(wrapper, dict):
        raise InputError(f'optim_wrapper is {short(wrapper)}; expected a dict with '
                         'optimizer.')
    settings = wrapper.get('optimizer')
    if not isinstance(settings, dict):
        if 'constructor' in wrapper:
            return  # it may have a form of its own
        raise InputError(f'optim_wrapper.optimizer is {short(settings)}; expected a '
                         "dict such as dict(type='AdamW', lr=1e-3).")
    rate = settings.get('lr')
    if isinstance(rate, float) and not math.isfinite(rate):
        raise InputError(f'optim_wrapper.optimizer.lr is {rate}; expected a number.')
    if 'type' not in settings:
        return
    kind = settings['type']
    if isinstance(kind, str):
        with OPTIMIZERS.switch_scope_and_registry(None) as registry:
            kind = registry.get(kind)
    try:
        first = next(iter(inspect.signature(kind).parameters))
        optimizer = OPTIMIZERS.build(
            {**settings, first: [torch.nn.Parameter(torch.zeros(1, 1))]})
    except (IndexError, TypeError, ValueError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise InputError(f'optim_wrapper.optimizer, {kind.__name__} with '
                         f'{_given(settings)}: {reason}') from None
    except Exception:  # such as one that needs a GPU
        return
    if type_name(wrapper) in ('', 'OptimWrapper', 'AmpOptimWrapper'):
        _check_wrapper(wrapper, optimizer)
    if not isinstance(schedulers, dict) or 'type' in schedulers:
        for i, scheduler in enumerate(as_list(schedulers)):
            _check_scheduler(f'param_scheduler.{i}', scheduler, optimizer)


def _check_scheduler(key: str, settings: Any, optimizer: torch.optim.Optimizer) -> None:
    """Take the first steps of a schedule."""
    if not isinstance(settings, dict):
        return
    settings = {name: value for name, value in settings.items()
                if name != 'convert_to_iter_based'}  # needs the data
    optimizer = copy.deepcopy(optimizer)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the optimizer has taken no step
            scheduler = PARAM_SCHEDULERS.build(
                settings, default_args=dict(optimizer=optimizer))
            for _ in range(2):
                scheduler.step()
    except ArithmeticError as error:
        raise InputError(f'{key} with {_given(settings)}: {error}') from None
    except Exception:  # the runner builds it with more arguments
        return
    rate = optimizer.param_groups[0].get('lr', 0.)
    if not math.isfinite(rate):
        raise InputError(f'{key} with {_given(settings)} gives a learning rate of '
                         f'{rate}.')


def _given(settings: dict) -> str:
    return ', '.join(f'{key}={short(value)}' for key, value in settings.items()
                     if key != 'type')


def _check_wrapper(wrapper: dict, optimizer: torch.optim.Optimizer) -> None:
    """Build the optimizer wrapper of a single parameter, and clip its gradient."""
    given = {key: copy.deepcopy(wrapper[key])
             for key in ('accumulative_counts', 'clip_grad') if key in wrapper}
    try:
        trial = OptimWrapper(optimizer, **given)
        if trial.clip_grad_kwargs:
            parameter = torch.nn.Parameter(torch.zeros(1))
            parameter.grad = torch.zeros(1)
            trial.clip_func([parameter], **trial.clip_grad_kwargs)
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(
            f'optim_wrapper with {_given(given)}: {one_line(error)}') from None
