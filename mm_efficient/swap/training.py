"""Normalisation, optimizer and hooks that fit another backbone."""
from typing import Any

from ..runs.traversal import as_list, type_name
from .draft import Draft, Path
from .family_settings import FamilySettings
from .yolo import replace_yolo_groups

# Constructors of MMDetection, MMSegmentation and MMPretrain that know the layers of a
# few backbones
_LAYER_DECAY = ('LearningRateDecayOptimizerConstructor',
                'LayerDecayOptimizerConstructor',
                'LearningRateDecayOptimWrapperConstructor')
_ABSOLUTE = ('eta_min', 'eta_max')  # learning rates among the settings of a schedule


def set_normalisation(draft: Draft, host: Path, family: FamilySettings) -> None:
    """Feed images as the published weights expect them: RGB, ImageNet mean and std.

    Args:
        draft (Draft): Changed in place.
        host (Path): The part with ``backbone``.
        family (FamilySettings): What it is trained with.
    """
    channels = (*host, 'backbone', 'in_channels')
    if (number := draft.get(*channels) or 3) != 3:
        draft.note(channels, number, number, 'the images are not RGB: they are '
                   'normalised as before, and the weights adapted to them')
        return
    wanted = (family.get('model', 'data_preprocessor')
              or family.get('data_preprocessor') or {})
    for path in _preprocessors(draft, host):
        found = draft.get(*path) or {}
        rgb = 'bgr_to_rgb'
        if (draft.get('default_scope') == 'mmpretrain'
                or type_name(found) in ('ClsDataPreprocessor', 'ReIDDataPreprocessor')):
            rgb = 'to_rgb'
        reason = 'the weights expect RGB with ImageNet mean and std'
        if not found.get(rgb):
            reason += '; images were fed as BGR'
        for key in ('mean', 'std'):
            if list(found.get(key) or ()) != list(wanted[key]):
                draft.set((*path, key), wanted[key], reason)
        if found.get('rgb_to_bgr'):
            draft.set((*path, 'rgb_to_bgr'), False, reason)
        draft.set((*path, rgb), True, reason)


def _preprocessors(draft: Draft, host: Path) -> list[Path]:
    """The preprocessor in use: that of the model, else the one beside it."""
    path: Path = ('model', 'data_preprocessor')
    if not draft.get(*path) and len(host) > 1:
        path = (*host, 'data_preprocessor')
    if not draft.get(*path):
        path = ('data_preprocessor', )
    found = [_innermost(draft, path)]
    inner = _innermost(draft, (*host, 'data_preprocessor'))
    return [*found, inner] if draft.get(*inner) and inner not in found else found


def _innermost(draft: Draft, path: Path) -> Path:
    """The preprocessor of the images inside one that sorts them by branch."""
    while isinstance(draft.get(*path, 'data_preprocessor'), dict):
        path = (*path, 'data_preprocessor')
    return path


def set_optimizer(draft: Draft, family: FamilySettings, keep: bool) -> None:
    """Put AdamW with the settings of the family in place of SGD.

    Args:
        draft (Draft): Changed in place.
        family (FamilySettings): What it is trained with.
        keep (bool): Leave the optimizer as it is.
    """
    replace_yolo_groups(draft)
    old = draft.get('optim_wrapper', 'optimizer') or {}
    if keep or type_name(old) != 'SGD':
        _replace_layer_decay(draft, family)
        return
    new = {**family.get('optim_wrapper', 'optimizer')}
    for key in ('betas', 'eps'):  # PyTorch's defaults
        new.pop(key, None)
    batch, published = (settings('auto_scale_lr', 'base_batch_size')
                        for settings in (draft.get, family.get))
    reason = f'SGD does not train these backbones well; as in configs/{family.name}'
    if batch and batch != published:
        if draft.get('default_scope') == 'mmpretrain':
            new['lr'] = _round(new['lr'] * batch / published)
            reason += f', with the learning rate scaled to {batch} images'
        else:
            reason += f', whose batch is {published} images; this one is {batch}'
    draft.set(('optim_wrapper', 'optimizer'), new, reason,
              f'SGD, lr {old.get("lr")}, weight_decay {old.get("weight_decay")}',
              f'AdamW, lr {new["lr"]:g}, weight_decay {new["weight_decay"]:g}')
    rules = family.get('optim_wrapper', 'paramwise_cfg')
    before = draft.get('optim_wrapper', 'paramwise_cfg')
    if rules != before and (rules or before):
        draft.set(('optim_wrapper', 'paramwise_cfg'), rules,
                  'goes with the optimizer', str(before or ''), str(rules))
    _scale_schedule(draft, new['lr'] / old['lr'])


def _round(value: float) -> float:
    return float(f'{value:.3g}')


def _scale_schedule(draft: Draft, factor: float) -> None:
    """Scale learning rates in a schedule, some of them above AdamW's."""
    schedule = draft.get('param_scheduler')
    parts = as_list(schedule)
    if not any(part.get(key) for part in parts for key in _ABSOLUTE):
        return
    scaled = [{key: _round(value * factor) if key in _ABSOLUTE and value else value
               for key, value in part.items()} for part in parts]

    def show(parts: list[dict]) -> str:
        return ', '.join(f'{key} {part[key]:g}' for part in parts for key in _ABSOLUTE
                         if part.get(key))

    draft.set(('param_scheduler', ),
              scaled if isinstance(schedule, (list, tuple)) else scaled[0],
              'follows the learning rate', show(parts), show(scaled))


def _replace_layer_decay(draft: Draft, family: FamilySettings) -> None:
    """Use our constructor, with the same learning rate for the first layer."""
    wrapper = draft.get('optim_wrapper') or {}
    if wrapper.get('constructor') not in _LAYER_DECAY:
        return
    rules = dict(wrapper.get('paramwise_cfg') or {})
    rate = rules.pop('decay_rate', None) or rules.pop('layer_decay_rate', 1.0)
    layers, depth = rules.pop('num_layers', None), sum(family.arch['depths'])
    rules.pop('decay_type', None)
    after = _round(rate ** ((layers + 1) / (depth + 1))) if layers else rate
    draft.set(('optim_wrapper', 'constructor'), 'LayerDecayOptimWrapperConstructor',
              'the stock one knows the layers of other backbones only')
    draft.set(('optim_wrapper', 'paramwise_cfg'), dict(rules, layer_decay_rate=after),
              f'{depth} layers instead of {layers}; the first one learns as before',
              f'decay rate {rate}', f'decay rate {after}')


def set_family_rest(draft: Draft, family: FamilySettings) -> None:
    """Add what else a family needs: imports, hooks, batch norms over all GPUs.

    Args:
        draft (Draft): Changed in place.
        family (FamilySettings): What it is trained with.
    """
    imports = draft.get('custom_imports', 'imports') or []
    draft.set(('custom_imports', ), dict(
        imports=[*as_list(imports), 'mm_efficient'], allow_failed_imports=False),
        'registers the backbone', ', '.join(as_list(imports)),
        ', '.join([*as_list(imports), 'mm_efficient']))
    hooks = [hook for hook in family.get('custom_hooks') or ()
             if hook['type'] == 'HashFittingHook']
    if hooks:
        draft.set(('custom_hooks', ), [*as_list(draft.get('custom_hooks')), *hooks],
                  'fits the hash functions if the weights have none',
                  '', 'HashFittingHook added')
    if family.get('sync_bn') and not draft.get('sync_bn'):
        draft.set(('sync_bn', ), family.get('sync_bn'),
                  'few images per GPU: batch statistics over all GPUs')
    if draft.get('load_from'):
        draft.set(('load_from', ), None, 'has the weights of the stock model')


def kept_settings(old: dict[str, Any], pretrained: bool) -> dict[str, Any]:
    """Settings of the old backbone that the new one keeps.

    Args:
        old (dict): Config of the old backbone.
        pretrained (bool): Whether the new one starts from weights. Without them
            nothing can stay as it is.

    Returns:
        dict: ``in_channels``, ``frozen_stages``, ``norm_eval`` and ``with_cp`` where
        they differ from the default.
    """
    kept: dict[str, Any] = {}
    if old.get('in_channels', 3) != 3:
        kept['in_channels'] = old['in_channels']
    if pretrained and old.get('frozen_stages', -1) >= 0:
        kept['frozen_stages'] = min(old['frozen_stages'], 4)
    if pretrained and old.get('norm_eval'):
        kept['norm_eval'] = True
    if old.get('with_cp'):
        kept['with_cp'] = True
    return kept


