"""Finding, reading and overriding configs."""
import copy
import errno
import os.path as osp
import re
import traceback
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.utils import is_installed

from ..errors import InputError, one_line
from ..files import config_files, join_root
from .arguments import NONE, Kinds, check_kinds
from .classes import head_classes, set_classes, set_num_classes
from .mini import apply_mini
from .overrides import check_options
from .traversal import SPLITS, as_list, split_datasets, split_metrics

MAPPING = (dict, NONE)
# What a part of a config may be besides an object, and how messages call it
KINDS: Kinds = {
    'model': (dict, 'dict'), 'default_scope': ((str, NONE), 'name'),
    'custom_hooks': ((list, tuple, NONE), 'list of dicts'),
    'tta_pipeline': ((list, tuple, NONE), 'list of dicts'),
    'load_from': ((str, NONE), 'path'), 'work_dir': ((str, NONE), 'path'),
    'compile': ((bool, *MAPPING), 'dict or a bool'),
    **{key: (MAPPING, 'dict') for key in (
        'default_hooks', 'visualizer', 'log_processor', 'env_cfg', 'randomness',
        'auto_scale_lr', 'tta_model', 'train_cfg', 'val_cfg', 'test_cfg',
        *(f'{split}_dataloader' for split in SPLITS))}}
# Task packages and the extra of this package that installs them
EXTRAS = dict(mmpretrain=None, mmdet='det', mmseg='seg')
# Packages whose configs may be bases of others
PACKAGES = (*EXTRAS, 'mmrotate', 'mmyolo')


def load_config(config: str | Path | Config,
                cfg_options: Mapping[str, Any] | None = None,
                mini: bool = False,
                *,
                data_root: str | Path | None = None,
                num_classes: int | None = None,
                classes: Sequence[str] | None = None) -> Config:
    """Read a config and override its settings.

    Later arguments in this list take precedence: ``mini``, ``data_root``,
    ``num_classes`` and ``classes``, ``cfg_options``.

    Args:
        config (str | Path | Config): Config file; the name of one of this package's
            configs, such as 'soft_tiny_300e.py', unless there is a file of that name;
            that of another package's, such as 'mmdet::yolox/yolox_s_8xb8-300e_coco.py';
            or a config, which is not changed.
        cfg_options (Mapping[str, Any], optional): Overrides by dotted key. Defaults to
            None.
        mini (bool): Whether to use the miniature data set, without distillation
            unless ``cfg_options`` set ``model.teacher``. Defaults to False.
        data_root (str | Path, optional): Folder to read the data sets of all splits
            from, with the layout the config expects. Defaults to None, that of the
            config.
        num_classes (int, optional): Number of classes of every head. Defaults to
            None, that of ``classes``, else of the config.
        classes (Sequence[str], optional): Names of the classes, for heads and data
            sets. Defaults to None, those of the config.

    Returns:
        Config: The config to run.

    Raises:
        InputError: If the config is missing, unreadable or incomplete.
    """
    options = dict(cfg_options or {})
    if isinstance(config, Config):
        cfg = copy.deepcopy(config)
    else:
        cfg = _read_config(_find_config(str(config)))
    _check_complete(cfg)
    if mini:
        apply_mini(cfg)
    if data_root is not None:
        move_data(cfg, str(data_root))
    _set_classes(cfg, num_classes, classes)
    if mini and not any(key.startswith('model.teacher') for key in options):
        drop_teacher(cfg)
    check_options(cfg, options)
    _merge(cfg, options)
    _allow_no_workers(cfg)
    return cfg


def _merge(cfg: Config, options: dict[str, Any]) -> None:
    for key, value in options.items():
        try:
            cfg.merge_from_dict({key: value})
        except Exception as error:  # MMEngine raises whatever comes up
            known = isinstance(error, KeyError) and error.args
            reason = one_line(error.args[0] if known else error)
            raise InputError(f'--cfg-options {key}={value}: {reason}') from None
    _check_complete(cfg)


def _set_classes(cfg: Config, num_classes: int | None,
                 classes: Sequence[str] | None) -> None:
    if classes is not None and num_classes not in (None, len(classes)):
        raise InputError(f'--num-classes is {num_classes}, but --classes names '
                         f'{len(classes)}. Leave --num-classes out.')
    if num_classes is not None:
        if head_classes(cfg.model) is None:
            raise InputError('--num-classes has no effect: no head of the model has a '
                             'num_classes that can be changed.')
        set_num_classes(cfg, num_classes)
        if cfg.default_scope == 'mmseg' and classes is None:
            classes = [f'class {label}' for label in range(num_classes)]
    if classes is not None:
        set_classes(cfg, classes)


def _find_config(path: str) -> str:
    """Path of a config; ours can be given by name alone."""
    if osp.isfile(path):
        return path
    package, _, name = path.partition('::')
    folder = _packaged_configs(package) if name else None
    if folder and (folder / name).is_file():
        return str(folder / name)
    for file in config_files():
        if file.name == path:
            return str(file)
    raise InputError(f'Config {path} does not exist (current folder: {Path.cwd()}). '
                     'Give its path, or just the name of a config of mm_efficient, '
                     'such as soft_tiny_300e.py, or that of an installed package, such '
                     'as mmdet::retinanet/retinanet_r50_fpn_1x_coco.py.')


def _packaged_configs(package: str) -> Path | None:
    """Folder of the configs that a package of OpenMMLab has in its installation."""
    spec = find_spec(package) if package.isidentifier() else None
    return Path(spec.origin).parent / '.mim' / 'configs' \
        if spec and spec.origin else None


def packaged_name(path: str) -> str | None:
    """Name of a config of an installed task package.

    Args:
        path (str): Of the config.

    Returns:
        str | None: Such as 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', as in
        ``_base_``; None if the config is elsewhere, or MMEngine would not find it.
    """
    for package in PACKAGES:
        folder = _packaged_configs(package)
        if folder and Path(path).resolve().is_relative_to(folder.resolve()):
            relative = Path(path).resolve().relative_to(folder.resolve())
            name = f'{package}::{relative.as_posix()}'
            # OneDL's distributions have other names, and folders such as gn+ws none
            # that MMEngine reads
            return name if is_installed(MODULE2PACKAGE.get(package, package)) \
                and re.match(r'\w+::\w+/', name) else None
    return None


def _read_config(path: str) -> Config:
    try:
        return Config.fromfile(path)
    except ModuleNotFoundError as error:
        raise InputError(f'Config {path} needs a package that is not '
                         f'installed: {error}.') from None
    except Exception as error:  # a config is a program
        if isinstance(error, RecursionError) or \
                isinstance(error, OSError) and error.errno == errno.EMFILE:
            reason = 'a file in _base_ is its own base'
        else:
            reason = f'{type(error).__name__}: {one_line(error)}'
        lines = [f' ({frame.filename}, line {frame.lineno})'
                 for frame in traceback.extract_tb(error.__traceback__)
                 if frame.name == '<module>']
        raise InputError(f'Config {path} cannot be read: {reason}'
                         f'{lines[-1] if lines else ""}') from None


def _check_complete(cfg: Config) -> None:
    name = cfg.filename or 'The config'
    if 'model' not in cfg:
        raise InputError(f'{name} sets no model. Name a complete config, such as those '
                         'in configs/{cls,det,seg}/. A config without it is usually a '
                         'base of others.')
    if cfg.get('default_scope') is None and isinstance(cfg.model, dict):
        cfg.default_scope = _scope_of(cfg.model)
    check_kinds(cfg, KINDS)
    scope = cfg.get('default_scope')
    if scope is None:
        raise InputError(
            f'{name} sets no default_scope; expected one of {list(EXTRAS)} '
            '(classification, detection, segmentation), or of another package for '
            'MMEngine.')
    if not scope.isidentifier() or find_spec(scope) is None:
        extra = EXTRAS.get(scope)
        hint = f": pip install 'mm-efficient[{extra}]'" if extra else ''
        raise InputError(f'{name} needs {scope}, which is not installed{hint}')


def _scope_of(model: dict) -> str | None:
    """Package of a model that is given as a class, or by a name with its package."""
    kind = model.get('type')
    module = kind.__module__ if isinstance(kind, type) else str(kind)
    scope = module.partition('.')[0]
    return scope if scope in EXTRAS and scope != module else None


def require(cfg: Config, *keys: str) -> None:
    """Check that a config has what a run needs.

    Args:
        cfg (Config): Config of the run.
        *keys (str): Names of its parts.

    Raises:
        InputError: If one is missing.
    """
    for key in keys:
        if cfg.get(key) is None:
            raise InputError(f'{cfg.filename or "The config"} sets no {key}.')


def move_data(cfg: Config, root: str) -> None:
    """Read all data sets of a config from another folder of the same layout.

    Args:
        cfg (Config): Changed in place: the data sets, and the annotation files of
            metrics that were below the old ``data_root``.
        root (str): The new ``data_root``.
    """
    cfg.data_root = root
    for split in SPLITS:
        for dataset in split_datasets(cfg, split):
            old = (dataset.get('data_root') or '').rstrip('/') + '/'
            dataset['data_root'] = root
            for metric in split_metrics(cfg, split):
                files = metric.get('ann_file')
                if files and old != '/':
                    moved = [join_root(root, path[len(old):].lstrip('/'))
                             if path.startswith(old) else path
                             for path in as_list(files)]
                    metric['ann_file'] = moved if isinstance(files, list) else moved[0]


def drop_teacher(cfg: Config) -> None:
    """Turn distillation off, if the config has it on."""
    if cfg.model.get('teacher'):
        cfg.model.teacher = None


def _allow_no_workers(cfg: Config) -> None:
    """Drop the loader settings that PyTorch refuses with ``num_workers=0``."""
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader') or {}
        if loader.get('num_workers') == 0:
            loader.persistent_workers = False
            loader.pop('prefetch_factor', None)
