"""Our models in timm's registry, named ``mm_<variant>``.

``timm.create_model('mm_soft_small')`` is the classifier,
``timm.create_model('mm_soft_small', features_only=True)`` the feature pyramid. The
prefix distinguishes our SwiftFormer and LowFormer from timm's.
"""
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule
from mmengine.registry import MODELS, DefaultScope
from timm.models import (
    PretrainedCfg,
    load_pretrained,
    register_model,
    resolve_pretrained_cfg,
)
from torch import nn

from ..errors import InputError
from ..weights.family import FAMILIES, CheckpointError, Family
from ..weights.loading import load_pretrained as load_backbone
from ..weights.loading import match_state_dict, read_state_dict
from ..weights.matching import compare_state_dicts, strip_wrappers
from .timm_wrappers import (
    LINEAR_STD,
    FeaturePyramid,
    PyramidClassifier,
    TimmModel,
    take_stages,
)

__all__: list[str] = []  # timm adds the names of the models

PREFIX = 'mm_'
INIT_CFG = dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=LINEAR_STD)
# Where weights may come from that timm can load; ours are in `Family.downloads`
SOURCES = ('state_dict', 'hf_hub_id', 'url')

default_cfgs: dict[str, dict] = {}  # is read by `register_model`


def _default_cfg(family: Family, variant: str) -> dict[str, Any]:
    """timm's description of published weights and of the images they take."""
    address = family.downloads.get(variant, '')
    source = 'hf_hub_id' if address.startswith('timm/') else 'url'
    return {
        source: address or None,
        'crop_pct': family.crops.get(variant, 0.875),
        'pool_size': (7, 7),
        'license': family.licence,
        'origin_url': family.code,
        'paper_name': family.title,
    }


def _entrypoint(family: Family, variant: str) -> Callable[..., TimmModel]:
    """Make the function that ``timm.create_model`` calls.

    A feature model ignores what only a classifier has, as timm's do.
    ``pretrained_model_args`` describes files that timm has saved, and is not needed.
    """
    name = PREFIX + variant

    def create(pretrained: bool = False,
               pretrained_cfg: str | dict | None = None,
               pretrained_cfg_overlay: dict | None = None,
               pretrained_strict: bool = True,
               pretrained_model_args: Mapping | None = None,
               cache_dir: str | Path | None = None,
               features_only: bool = False,
               out_indices: int | Sequence[int] | None = None,
               feature_cls: str | None = None,
               in_chans: int = 3,
               num_classes: int | None = None,
               global_pool: str | None = None,
               drop_rate: float = 0.,
               drop_path_rate: float | None = None,
               device: torch.device | str | None = None,
               dtype: torch.dtype | None = None) -> TimmModel:
        if isinstance(pretrained_cfg, str):
            raise InputError(f'{name} has no tags, got {pretrained_cfg!r}')
        cfg = resolve_pretrained_cfg(name, pretrained_cfg, pretrained_cfg_overlay)
        if num_classes is None:
            num_classes = cfg.num_classes
        settings: dict[str, Any] = dict(in_channels=in_chans)
        if drop_path_rate is not None:
            settings.update(drop_path_rate=drop_path_rate)
        _check_feature_options(features_only, out_indices, feature_cls)
        model = _pyramid(family, variant, settings, out_indices) if features_only else \
            _classifier(family, variant, settings, num_classes, global_pool, drop_rate)
        model.pretrained_cfg = model.default_cfg = _described(cfg, model)
        if pretrained:
            _load(model, variant, cfg, pretrained_strict, cache_dir)
        if device is None and dtype is None:
            return model  # a fake model cannot be converted
        return model.to(device=device, dtype=dtype)

    create.__name__ = create.__qualname__ = name
    return create


def _check_feature_options(features_only: bool, out_indices: Any,
                           feature_cls: Any) -> None:
    if not features_only and (out_indices is not None or feature_cls is not None):
        raise InputError('out_indices and feature_cls need features_only=True')
    if feature_cls not in (None, 'list', 'getter'):
        raise InputError(
            f'feature_cls={feature_cls!r}: the feature models of mm_efficient return '
            "lists. For other nodes or a dict create the classifier, and pass it to "
            'timm.models.create_feature_extractor')


def _pyramid(family: Family, variant: str, settings: Mapping[str, Any],
             out_indices: int | Sequence[int] | None) -> FeaturePyramid:
    stages = take_stages(out_indices)
    return FeaturePyramid(_build(
        {**family.variants[variant], **family.dense, **settings,
         'out_indices': sorted({*stages})}), stages)


def _classifier(family: Family, variant: str, settings: Mapping[str, Any],
                num_classes: int, global_pool: str | None, drop_rate: float
                ) -> PyramidClassifier:
    cfg = family.classifier(family.variants[variant], num_classes or 1000)
    cfg['backbone'].update(settings)
    if cfg['backbone'].get('out_type') == 'cls_token':
        cfg['backbone']['out_type'] = 'raw'
    return PyramidClassifier(
        _build(cfg['backbone']), _build(dict(cfg['head'], init_cfg=INIT_CFG)),
        num_classes, global_pool, drop_rate)


def _build(cfg: dict[str, Any]) -> Any:
    """Build and initialise without MMEngine's log of several lines per parameter."""
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        module: BaseModule = MODELS.build(cfg)
    if next(module.parameters()).is_meta:  # MMEngine would read the values
        return module
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        module.init_weights()
    finally:
        logger.setLevel(level)
    return module


def _described(cfg: PretrainedCfg, model: TimmModel) -> dict[str, Any]:
    """``cfg`` with what only the model knows: names of its first and last layers."""
    described = cfg.to_dict()
    described['first_conv'] = next(
        name for name, module in model.named_modules() if isinstance(module, nn.Conv2d))
    if isinstance(model, PyramidClassifier):
        layers = [name for name, module in model.named_modules()
                  if name in ('head.fc', 'head.fc_dist')]
        described['classifier'] = layers[0] if len(layers) == 1 else tuple(layers)
    else:
        described.pop('num_classes')
        described.pop('classifier')
    return described


def _load(model: TimmModel, variant: str, cfg: PretrainedCfg, strict: bool,
          cache_dir: str | Path | None) -> None:
    """Load published weights, or what timm itself has saved."""
    default = PretrainedCfg(**default_cfgs[PREFIX + variant])
    if cfg.source in ('hf-hub', 'local-dir') or not cfg.file and any(
            getattr(cfg, source) not in (None, getattr(default, source))
            for source in SOURCES):
        options: dict[str, Any] = dict(cache_dir=cache_dir) if cache_dir else {}
        load_pretrained(
            model, model.pretrained_cfg, getattr(model, 'num_classes', 0),
            model.in_chans, strict=strict, **options)
        return
    if not strict:
        raise InputError(
            f'{PREFIX}{variant}: published weights are loaded completely or not at '
            'all; for a part of them, call load_state_dict(..., strict=False)')
    source = cfg.file or f'published://{variant}'
    if isinstance(model, PyramidClassifier):
        _load_classifier(model, source, cfg.num_classes)
    else:
        load_backbone(model.backbone, source)


def _load_classifier(model: PyramidClassifier, source: str, num_classes: int) -> None:
    """Load all weights, or all but the last layer for another number of classes."""
    tensors = strip_wrappers(read_state_dict(source))
    backbone = match_state_dict(model.backbone, tensors, source, 'backbone')
    head = {key.removeprefix('head.'): value for key, value in tensors.items()
            if key.startswith('head.')}
    expected = model.head.state_dict()
    if model.num_classes not in (num_classes, len(head.get('fc.weight', ()))):
        head, expected = ({key: value for key, value in part.items()
                           if not key.startswith(('fc.', 'fc_dist.'))}
                          for part in (head, expected))
    mismatch = compare_state_dicts(expected, head)
    if mismatch:
        raise CheckpointError(
            f'{source} does not fit the head of the classifier; {mismatch}. Nothing '
            'was loaded. Check num_classes; for a backbone, pass features_only=True')
    model.backbone.load_state_dict(backbone, strict=False)
    model.head.load_state_dict(head, strict=False)


for _family in FAMILIES:
    for _variant in _family.variants:
        _create = _entrypoint(_family, _variant)
        default_cfgs[_create.__name__] = _default_cfg(_family, _variant)
        globals()[_create.__name__] = _create  # timm adds the name to __all__
        register_model(_create)
