"""What can be told to be wrong with a model before a runner is built.

MMEngine would find most of it too: after it has filled the work dir, read the
data set and printed the config, and in the words of the layer that fails.
"""
import os
import os.path as osp

import torch
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS as ALL_MODELS
from mmengine.registry import DefaultScope, init_default_scope
from mmpretrain.registry import MODELS

from ..errors import InputError
from ..files import is_local
from ..models.base import PyramidBackbone
from ..models.classifiers import build_teacher
from ..weights.checking import check_checkpoint
from ..weights.family import CheckpointError
from ..weights.loading import match_pretrained
from ..weights.matching import Mismatch, compare_state_dicts

PUBLISHED = 'published://'
TEACHER_ON_HUB = 'regnety_160.deit_in1k'


def check_model(cfg, pretrained=True):
    """Check the backbone of a config, if it is one of this package.

    Args:
        cfg (Config): Config of the run.
        pretrained (bool): Whether to read the weights that ``init_cfg`` names
            too, where they are a local file. Defaults to True.

    Raises:
        InputError: If it cannot be built, its weights do not fit, or what
            follows it expects other channels.
    """
    settings = cfg.model.get('backbone')
    if not settings or not _is_ours(settings.get('type'), cfg.default_scope):
        return
    backbone = _build(settings)
    _check_image_channels(cfg.model, backbone)
    _check_feature_channels(cfg.model, backbone)
    if pretrained:
        _check_pretrained(settings.get('init_cfg'), backbone)


def _is_ours(kind, scope):
    if isinstance(kind, type):
        return issubclass(kind, PyramidBackbone)
    name = str(kind).removeprefix('mmpretrain.')
    found = MODELS.module_dict.get(name)
    ours = isinstance(found, type) and issubclass(found, PyramidBackbone)
    if ours and name == kind and scope != 'mmpretrain':
        raise InputError(f'model.backbone.type is {name!r}, which is registered '
                         f"in MMPretrain: write 'mmpretrain.{name}'.")
    return ours


def _build(settings):
    """The backbone, without memory for its weights."""
    try:
        with DefaultScope.overwrite_default_scope('mmpretrain'), \
                torch.device('meta'):
            return MODELS.build({**settings, 'init_cfg': None})
    except (TypeError, ValueError) as error:
        raise InputError(f'model.backbone: {error}') from None


def _check_image_channels(model, backbone):
    mean = (model.get('data_preprocessor') or {}).get('mean') or ()
    if len(mean) == 3 and backbone.in_channels != 3:
        raise InputError(
            f'model.backbone.in_channels is {backbone.in_channels}, but '
            'model.data_preprocessor normalises images of 3 channels. Set one '
            'of them to fit your images.')


def _check_feature_channels(model, backbone):
    """Compare what the backbone gives with what its successors expect."""
    widths = [backbone.feature_channels[i] for i in backbone.out_indices]
    neck = model.get('neck') or {}
    if 'in_channels' in neck:
        successors = dict(neck=neck)
    elif neck.get('type', 'GlobalAveragePooling') == 'GlobalAveragePooling':
        successors = {
            key: model[key]
            for key in ('decode_head', 'auxiliary_head', 'head')
            if isinstance(model.get(key), dict)
        }
    else:  # a neck that is not known
        return
    for name, successor in successors.items():
        given = successor.get('in_channels')
        if isinstance(given, (list, tuple)):
            index = successor.get('in_index') or range(len(widths))
        else:
            index = successor.get('in_index', -1)
        _compare(name, given, widths, index, backbone)


def _compare(name, given, widths, index, backbone):
    try:
        expected = widths[index] if isinstance(index, int) else \
            [widths[i] for i in index]
    except IndexError:
        raise InputError(
            f'model.{name}.in_index is {index}, but out_indices of the backbone '
            f'are {backbone.out_indices}.') from None
    same = given == expected if isinstance(given, int) else \
        list(given or ()) == expected
    if given is not None and not same:
        raise InputError(
            f'model.{name}.in_channels is {given}, but '
            f'{type(backbone).__name__} gives {expected}. Set it to that.')


def _check_pretrained(init_cfg, backbone):
    for cfg in init_cfg if isinstance(init_cfg, list) else [init_cfg or {}]:
        if cfg.get('type') not in ('Pretrained', PretrainedInit):
            continue
        path = cfg.get('checkpoint')
        if not is_local(str(path).removeprefix(PUBLISHED)):
            continue
        try:
            if not path.startswith(PUBLISHED):
                check_checkpoint(path)
            match_pretrained(backbone, path, cfg.get('prefix'))
        except (CheckpointError, OSError, ImportError) as error:
            raise InputError(f'model.backbone.init_cfg: {error}') from None


def check_teacher(cfg):
    """Check the model that a config learns from, if there is one.

    Args:
        cfg (Config): Config of the run.

    Raises:
        InputError: If it cannot be built or its weights are missing or do not fit.
    """
    teacher = cfg.model.get('teacher')
    if not teacher:
        return
    path = str(teacher.get('checkpoint'))
    if is_local(path) and not path.startswith('timm/') and not osp.isfile(path):
        raise InputError(
            f'{path} does not exist; the recipe distils from a teacher, '
            f'{teacher.get("model_name", teacher.type)}, and '
            'model.teacher.checkpoint is the file of its weights (current folder: '
            f'{os.getcwd()}).\n'
            "  - to have timm's fetched from its hub, add --cfg-options "
            f'model.teacher.checkpoint=timm/{TEACHER_ON_HUB}\n'
            '  - if you have it elsewhere, model.teacher.checkpoint=FILE\n'
            '  - for another teacher, model.teacher.model_name=NAME (of timm) too\n'
            '  - to learn from the labels alone, model.teacher=None')
    init_default_scope(cfg.default_scope)
    try:
        build_teacher(teacher)
    except (CheckpointError, RuntimeError, TypeError, KeyError, ImportError) as error:
        raise InputError(
            f'model.teacher: {error}. It has to tell as many classes apart as the '
            'model.') from None


def check_weights(cfg, checkpoint, path, complete=True):
    """Check a checkpoint against the model of a config.

    Args:
        cfg (Config): Config of the run.
        checkpoint (dict): What :func:`~.checks.check_checkpoint` returned.
        path (str): Where it came from, for the message.
        complete (bool): Whether it has to have every tensor of the model, as
            for a test. Otherwise one that fits is enough: a training may start
            from a model with another head. Defaults to True.

    Raises:
        InputError: If tensors are missing or have another shape.
    """
    init_default_scope(cfg.default_scope)
    expected = ALL_MODELS.build(cfg.model).state_dict()
    weights = checkpoint.get('state_dict', checkpoint)
    found = compare_state_dicts(expected, {
        key.removeprefix('module.'): value for key, value in weights.items()
        if hasattr(value, 'shape')})
    mismatch = Mismatch(found.missing, [], found.reshaped)
    if complete and mismatch:
        raise InputError(
            f'Checkpoint {path} does not fit the model of the config, which has '
            f'{len(expected)} tensors; {mismatch}. Was it trained with this config, '
            'with --mini or without, and with the same num_classes?')
    if len(mismatch) == len(expected):
        raise InputError(
            f'Checkpoint {path} has no weights for the model of the config; '
            f'{mismatch}. Weights of a backbone alone are loaded by '
            "model.backbone.init_cfg=dict(type='Pretrained', checkpoint=...).")
