"""Checks of a run's model and weights, before anything is built or written.

MMEngine would detect most of these errors too, but only after creating the work dir,
reading the data set and printing the config, and with the message of whichever layer
fails.
"""
import copy
import functools
import inspect
import os.path as osp
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.dist import get_world_size
from mmengine.model import BaseTTAModel, PretrainedInit, revert_sync_batchnorm
from mmengine.registry import MODELS as ALL_MODELS
from mmengine.registry import DefaultScope, init_default_scope
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from ..engine.backbone_speed import ChannelsLastBackboneHook, CompileBackboneHook
from ..errors import InputError, one_line
from ..files import is_local
from ..models.base import MIN_IMAGE_SIZE, PyramidBackbone
from ..weights.checking import check_checkpoint
from ..weights.family import CheckpointError
from ..weights.loading import match_pretrained, match_state_dict, match_weights
from ..weights.locating import NeverPublishedError
from ..weights.matching import Mismatch, compare_state_dicts, stored_weights
from ..weights.reading import SCHEME
from .traversal import as_list, inner_model, nested_dicts, type_name

PREPROCESSORS = ('ClsDataPreprocessor', 'DetDataPreprocessor', 'SegDataPreProcessor')
TRIAL_SHAPE = (320, 320)  # height and width in pixels; SSD's levels need 300
TEACHER_ON_HUB = 'regnety_160.deit_in1k'


def build_on_meta(settings: dict) -> nn.Module:
    """Build a model to look at names and shapes, without memory for its weights.

    Args:
        settings (dict): Config of any model of the default scope. Building changes
            some of them, so a copy is built.

    Returns:
        nn.Module: On the meta device; on the CPU if its constructor reads values of
        the tensors it makes, which MMPretrain's Swin does.
    """
    try:
        with torch.device('meta'):
            return ALL_MODELS.build(copy.deepcopy(settings))
    except Exception:  # if the settings are wrong, the second attempt raises the error
        return ALL_MODELS.build(copy.deepcopy(settings))


def check_model(cfg: Config, pretrained: bool = True) -> None:
    """Check the model of a config, and most of all a backbone of this package.

    Args:
        cfg (Config): Config of the run.
        pretrained (bool): Whether to check the weights that ``init_cfg`` names, too.
            ``published://`` is fetched, converted and kept for loading; other
            URLs are left to MMEngine. Defaults to True.

    Raises:
        InputError: If it cannot be built, its weights do not fit, or the neck or head
            expects different channels.
    """
    settings = inner_model(cfg.model).get('backbone')
    if not isinstance(settings, dict) or not is_ours(settings.get('type')):
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = _build(cfg.model)
        hooks = {*map(type_name, as_list(cfg.get('custom_hooks')))}
        for hook in (ChannelsLastBackboneHook, CompileBackboneHook):
            if hook.__name__ in hooks:
                hook.backbones_of(model)
        return
    kind = settings['type']
    if (isinstance(kind, str) and '.' not in kind
            and 'mmpretrain' not in (cfg.default_scope, settings.get('_scope_'))):
        raise InputError(f'model.backbone.type is {kind!r}, which is registered '
                         f"in MMPretrain: write 'mmpretrain.{kind}'.")
    try:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            backbone = build_on_meta({**settings, 'init_cfg': None})
    except (TypeError, ValueError) as error:
        raise InputError(f'model.backbone: {error}') from None
    _check_image_channels(cfg, backbone)
    _check_features(cfg, backbone)
    if pretrained:
        init_cfg = settings.get('init_cfg')
        for each in init_cfg if isinstance(init_cfg, list) else [init_cfg or {}]:
            if each.get('type') in ('Pretrained', PretrainedInit):
                _check_pretrained(each, backbone)


def is_ours(kind: Any) -> bool:
    """Tell whether a backbone is one of this package.

    Args:
        kind (Any): Its ``type`` in a config, a name or a class.
    """
    if not isinstance(kind, type):
        kind = MODELS.module_dict.get(str(kind).rpartition('.')[2])
    return isinstance(kind, type) and issubclass(kind, PyramidBackbone)


def _check_image_channels(cfg: Config, backbone: Any) -> None:
    preprocessor = inner_model(cfg.model).get('data_preprocessor') \
        or cfg.get('data_preprocessor')
    mean = preprocessor.get('mean') if isinstance(preprocessor, dict) else None
    if (isinstance(mean, (list, tuple)) and len(mean) == 3 and backbone.in_channels != 3
            and type_name(preprocessor) in ('', *PREPROCESSORS)):
        raise InputError(
            f'model.backbone.in_channels is {backbone.in_channels}, but '
            'model.data_preprocessor normalises images with 3 channels. Set one '
            'of them to fit your images.')


def _check_features(cfg: Config, backbone: Any) -> None:
    """Run neck and heads on the feature maps of a small image.

    They run without data, on the meta device. What fails there is tried again on the
    CPU, since some operators need values; only what fails there too is an error.
    """
    settings = inner_model(cfg.model)
    if cfg.default_scope == 'mmpretrain':
        settings = {**settings, 'train_cfg': None}  # logs that it is there
    with DefaultScope.overwrite_default_scope(cfg.default_scope), torch.no_grad():
        model = _build(settings).eval()
        on_cpu = functools.cache(
            lambda: ALL_MODELS.build(copy.deepcopy(settings)).eval())
        for shape in _trial_shapes(cfg):
            try:
                image = torch.zeros(1, backbone.in_channels, *shape, device='meta')
                features = backbone.eval()(image)
            except Exception:  # the backbone needs values
                return
            failed = _try_successors(model, _successors(model), features, on_cpu)
            if failed is None:
                break
    if failed is None:
        _check_batch(cfg, model, features)
        return
    part, problem = failed
    reason = (str(problem).strip() or 'an assertion').splitlines()[0]
    own = settings.get(part)
    given = [f'{key}={own[key]}' for key in ('in_channels', 'in_index')
             if isinstance(own, dict) and key in own]
    raise InputError(
        f'model.{part} {" and ".join(given)} does not fit model.backbone, '
        f'{type(backbone).__name__} with feature maps of '
        f'{[map.shape[1] for map in features]} channels '
        f'({type(problem).__name__}: {reason}). Set its in_channels and in_index to '
        'those.')


def _trial_shapes(cfg: Config) -> Iterator[tuple[int, int]]:
    """Heights and widths to try: one for most models, then those of the pipelines."""
    yield TRIAL_SHAPE
    loaders = [cfg.get(f'{split}_dataloader') for split in ('train', 'test')]
    for step in nested_dicts(loaders):
        for key in ('crop_size', 'scale', 'size'):
            size = step.get(key)
            size = (size, size) if isinstance(size, int) else size
            if isinstance(size, (list, tuple)) and len(size) == 2 and all(
                    isinstance(side, int) and side >= MIN_IMAGE_SIZE for side in size):
                # The scale of a Resize is (width, height)
                yield (size[1], size[0]) if key == 'scale' else (size[0], size[1])


def _check_batch(cfg: Config, model: Any, features: Sequence[Tensor]) -> None:
    """Check that no batch norm gets one image with a map of one pixel in training."""
    if (cfg.get('train_dataloader') or {}).get('batch_size') != 1 or any(
            isinstance(module, nn.SyncBatchNorm) and get_world_size() > 1
            for module in model.modules()):
        return
    model = revert_sync_batchnorm(model).train()
    device = next(model.parameters()).device
    large = tuple(torch.zeros(*x.shape[:2], *(4 * size for size in x.shape[2:]),
                              device=device) for x in features)
    with torch.no_grad():
        failed = _try_successors(model, _successors(model), large)
    if failed is not None and 'more than 1 value per channel' in str(failed[1]):
        raise InputError(
            f'train_dataloader.batch_size is 1, but model.{failed[0]} has a batch norm '
            'on a map of 1 x 1 pixel, which needs at least 2 images in a batch '
            f'({failed[1]}).')


def _build(settings: dict) -> Any:
    try:
        return build_on_meta(settings)
    except Exception as error:
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        reason = one_line(text)
        raise InputError('The model of the config cannot be built: '
                         f'{type(error).__name__}: {reason}') from error


def _successors(model: Any) -> list[str]:
    """Names of the modules that run on the backbone's feature maps, neck first."""
    names = ['neck'] if getattr(model, 'with_neck', False) else []
    for part in ('decode_head', 'auxiliary_head', 'head'):
        head = getattr(model, part, None)
        if isinstance(head, nn.ModuleList):
            names += [f'{part}.{i}' for i in range(len(head))]
        elif head is not None:
            names.append(part)
    return [name for name in names
            if name == 'neck' or _takes_features_alone(model.get_submodule(name))]


def _try_successors(model: Any, names: list[str], features: Sequence[Tensor],
                    on_cpu: Callable[[], Any] | None = None
                    ) -> tuple[str, Exception] | None:
    """Name the part of a model that cannot run on feature maps, and its error.

    From the first module that fails on, those of the model ``on_cpu`` are run.
    """
    for i, name in enumerate(names):
        try:
            outs = model.get_submodule(name)(features)
        except NotImplementedError:  # an operator that is not installed
            return None
        except Exception as error:
            if 'cuda' in str(error).lower():  # operators of mmcv for CUDA only
                return None
            if on_cpu is None:
                return name.partition('.')[0], error
            values = tuple(torch.zeros(x.shape) for x in features)
            return _try_successors(on_cpu(), names[i:], values)
        if name == 'neck':
            features = outs
    return None


def _takes_features_alone(head: nn.Module) -> bool:
    parameters = list(inspect.signature(head.forward).parameters.values())
    return sum(p.default is p.empty for p in parameters) == 1


def _check_pretrained(init_cfg: dict, backbone: nn.Module) -> None:
    path, prefix = str(init_cfg.get('checkpoint')), init_cfg.get('prefix')
    try:
        if path.startswith(SCHEME):
            match_pretrained(backbone, path, prefix, keep=True)
        elif is_local(path):
            content = check_checkpoint(path) or {}
            match_state_dict(backbone, stored_weights(content), path, prefix)
    except NeverPublishedError:
        pass  # training starts from scratch, and warns
    except (InputError, OSError, ImportError) as error:
        raise InputError(
            f'model.backbone.init_cfg: {str(error).rstrip(".")}. To start from other '
            'weights, or from scratch: --pretrained FILE or --pretrained none, in a '
            'config model.backbone.init_cfg=None.') from None


def check_teacher(cfg: Config) -> None:
    """Check the model that a config distils from, if there is one.

    Its weights are cached for training, which builds it.

    Args:
        cfg (Config): Config of the run.

    Raises:
        InputError: If it cannot be built, or its weights are missing or do not fit.
    """
    if not cfg.model.get('teacher'):
        return
    teacher = dict(cfg.model.teacher)
    path = str(teacher.pop('checkpoint', None))
    if is_local(path) and not path.startswith('timm/') and not osp.isfile(path):
        raise InputError(
            f'{path} does not exist; the recipe distils from a teacher, '
            f'{teacher.get("model_name", teacher.get("type"))}, and '
            'model.teacher.checkpoint is the file with its weights (current folder: '
            f'{Path.cwd()}).\n'
            "  - to fetch timm's weights from its hub, add --cfg-options "
            f'model.teacher.checkpoint=timm/{TEACHER_ON_HUB}\n'
            '  - if you have it elsewhere, model.teacher.checkpoint=FILE\n'
            '  - for another teacher, also model.teacher.model_name=NAME (in timm)\n'
            '  - to learn from the labels alone, model.teacher=None')
    try:
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            match_weights(build_on_meta(teacher), path, keep=True)
    except (CheckpointError, RuntimeError, TypeError, KeyError, ImportError) as error:
        raise InputError(
            f'model.teacher: {error}. It must have as many classes as the '
            'model.') from None


def check_weights(cfg: Config, checkpoint: dict, path: str,
                  complete: bool = True) -> None:
    """Check a checkpoint against the model of a config.

    Args:
        cfg (Config): Config of the run.
        checkpoint (dict): From :func:`~mm_efficient.weights.check_checkpoint`.
        path (str): Where it came from, for the message.
        complete (bool): Whether every tensor of the model must be there, as for
            testing. Otherwise one that fits is enough: training may start from a
            model with another head. Defaults to True.

    Raises:
        InputError: If tensors are missing or have another shape.
    """
    init_default_scope(cfg.default_scope)
    model = _build(cfg.model)
    while isinstance(model, BaseTTAModel):  # loads what is inside
        model = model.module
    expected = model.state_dict()
    weights = {key.removeprefix('module.'): value
               for key, value in checkpoint.get('state_dict', checkpoint).items()
               if hasattr(value, 'shape')}
    found = compare_state_dicts(expected, weights)
    mismatch = Mismatch(found.missing, [], found.reshaped)
    if complete and mismatch:
        raise InputError(
            f'Checkpoint {path} does not fit the model of the config, which has '
            f'{len(expected)} tensors; {mismatch}. Was it trained with this config, '
            'with --mini or without, and with the same num_classes?')
    if len(found.unexpected) + len(found.reshaped) == len(weights):
        raise InputError(
            f'Checkpoint {path} has no weights for the model of the config; '
            f'{mismatch}. To load the weights of a backbone alone, use '
            '--pretrained.')
