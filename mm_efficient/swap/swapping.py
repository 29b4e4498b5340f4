"""Swapping the backbone of a config."""
import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..errors import explain
from ..files import check_output, whole_file
from ..runs.configs import load_config, packaged_name
from ..runs.traversal import type_name
from .classifiers import fit_classifier
from .draft import Change, Draft
from .draft import Path as Place
from .family_settings import FamilySettings, read_family_settings
from .stock import find_backbone, find_levels
from .successors import fit_successors
from .training import (
    kept_settings,
    set_family_rest,
    set_normalisation,
    set_optimizer,
)
from .wrappers import fit_wrapper
from .writing import base_of, config_text


@dataclass(frozen=True)
class Swap:
    """A config with another backbone.

    Args:
        cfg (Config): The complete config.
        overrides (dict): What it changes of the stock one.
        changes (list[Change]): The same for the user, with reasons.
        title (str): What it is.
        comments (dict[str, str]): Comments for the file, by key.
        base (str, optional): The stock config, as given; None if it is in memory only,
            or of the new style, which has no ``_base_``.
        sources (frozenset[Path]): Files that the stock config is read from.
    """

    cfg: Config
    overrides: dict[str, Any]
    changes: list[Change]
    title: str
    comments: dict[str, str]
    base: str | None
    sources: frozenset[Path]

    def write(self, out: str | Path) -> None:
        """Write the config: a few lines, or whole without a file to start from.

        Args:
            out (str | Path): A file that ends with '.py'.

        Raises:
            InputError: If it cannot be written.
        """
        check_output(out, ['.py'], [*self.sources])
        with whole_file(out) as draft:
            draft.write_text(self.text(out))

    def text(self, out: str | Path) -> str:
        """Source of the config as :meth:`write` writes it to ``out``."""
        if self.base is None:
            return self.cfg.pretty_text
        return config_text(base_of(self.base, out), self.overrides, self.title,
                           self.comments)


def swap_backbone(cfg: str | Path | Config, variant: str,
                  out: str | Path | None = None, *,
                  keep_optimizer: bool = False) -> Config:
    """Put a backbone of this package into any config of OpenMMLab.

    Args:
        cfg (str | Path | Config): Config of MMDetection, MMSegmentation or MMPretrain
            (classifiers), or of a project on top of them: a name such as
            'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py', a path, or a config, which
            is not changed.
        variant (str): The backbone, such as 'soft_small_norm'.
        out (str | Path, optional): Where to write the swapped config, as a few lines
            on top of the stock one. Defaults to None, nowhere.
        keep_optimizer (bool): Leave the optimizer as it is, else AdamW replaces SGD.
            Defaults to False.

    Returns:
        Config: The complete swapped config.

    Raises:
        InputError: If the config cannot be read, or does without no backbone but its
            own.
    """
    swap = plan_swap(cfg, variant, keep_optimizer=keep_optimizer)
    if out is not None:
        swap.write(out)
    return swap.cfg


def plan_swap(cfg: str | Path | Config, variant: str, *,
              keep_optimizer: bool = False) -> Swap:
    """Work out a swap without writing it.

    Args:
        cfg (str | Path | Config): See :func:`swap_backbone`.
        variant (str): See :func:`swap_backbone`.
        keep_optimizer (bool): See :func:`swap_backbone`. Defaults to False.

    Returns:
        Swap: The swapped config, and what was changed.

    Raises:
        InputError: See :func:`swap_backbone`.
    """
    stock = load_config(cfg)
    base = _base(cfg, stock)
    draft = Draft(stock.to_dict())
    host = find_backbone(draft.cfg)
    family = read_family_settings(variant, _recipe(stock, draft, host))
    old = type_name(draft.get(*host, 'backbone'))
    with explain(f'the backbone of {base or "the config"} cannot be swapped',
                 'Swap it by hand, see docs/swap.md.'):
        _fit_model(draft, host, family)
    set_normalisation(draft, host, family)
    set_optimizer(draft, family, keep_optimizer)
    set_family_rest(draft, family)
    overrides = draft.overrides()
    swapped = Config(stock.to_dict())
    swapped.merge_from_dict(copy.deepcopy(overrides))  # it takes marks out
    return Swap(swapped, overrides, draft.changes,
                f'{type_name(draft.get(*host))} with {variant} in place of {old}, '
                'written by tools/swap_backbone.py', _comments(draft, family), base,
                _sources(stock))


def _base(cfg: str | Path | Config, stock: Config) -> str | None:
    """The file that a config comes from, if it says the same."""
    file = stock.filename
    if isinstance(cfg, Config) and not (
            file and Path(file).is_file()
            and Config.fromfile(file).to_dict() == cfg.to_dict()):
        return None
    # MMEngine does not mix styles
    return None if Config._is_lazy_import(file) else packaged_name(file) or file


def _sources(stock: Config) -> frozenset[Path]:
    """Files of a config and its bases: MMEngine puts their names above their text."""
    lines = [*stock.text.splitlines(), stock.filename or '']
    return frozenset(Path(line).resolve() for line in lines if line.endswith('.py'))


def _recipe(cfg: Config, draft: Draft, host: Place) -> str:
    """The kind of config whose training settings fit best."""
    if cfg.default_scope == 'mmpretrain':
        return 'classifier'
    if cfg.default_scope == 'mmseg' or draft.get(*host, 'decode_head'):
        neck = draft.get(*host, 'neck')
        return 'fpn' if type_name(neck if isinstance(neck, dict) else {}) == 'FPN' \
            else 'upernet'
    return 'maskrcnn' if draft.get(*host, 'roi_head') else 'retinanet'


def _fit_model(draft: Draft, host: Place, family: FamilySettings) -> None:
    """Swap the backbone, and fit what reads it."""
    channels = family.arch['embed_dims']
    scope = draft.cfg['default_scope']
    old, place = draft.get(*host, 'backbone'), (*host, 'backbone')
    new = family.backbone
    if scope == 'mmpretrain':
        fit_classifier(draft, host, channels)
        out_indices: tuple[int, ...] = (3, )
    elif inner := fit_wrapper(draft, host, channels, new):
        place, out_indices = inner
        old = draft.get(*place)
    else:
        out_indices = fit_successors(draft, host, find_levels(old, scope), channels)
    for path in {('model', 'pretrained'), (*host, 'pretrained')}:
        if draft.get(*path):
            draft.set(path, None, 'the backbone names its weights itself')
    pretrained = family.is_published and (
        scope != 'mmpretrain' or bool(old.get('init_cfg')))
    new = dict(type=new.pop('type'), arch=new.pop('arch'), out_indices=out_indices,
               **new, **kept_settings(old, pretrained))
    if pretrained:
        new['init_cfg'] = dict(type='Pretrained', checkpoint=f'published://{family.variant}')
    draft.set(place, new, _weights_reason(family, scope, pretrained, old),
              after=f'{type_name(new)} {new["arch"]}, out_indices {out_indices}')


def _weights_reason(family: FamilySettings, scope: str, pretrained: bool,
                    old: dict) -> str:
    if pretrained:
        reason = f'starts from published://{family.variant}'
    elif family.is_published:
        reason = 'starts from scratch, as the stock classifier does'
    else:
        reason = 'starts from scratch: its weights were never published'
        if old.get('frozen_stages', -1) >= 0 or old.get('norm_eval'):
            reason += ', so nothing is frozen'
    return f'{reason}; settings as in configs/{family.name}'


def _comments(draft: Draft, family: FamilySettings) -> dict[str, str]:
    replaced = any(change.setting == 'optim_wrapper.optimizer'
                   for change in draft.changes)
    return dict(optim_wrapper=f'As in configs/{family.name}') if replaced else {}


