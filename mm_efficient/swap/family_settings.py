"""How the configs of a variant train it: what a swapped config takes from them."""
from dataclasses import dataclass
from typing import Any

from mmengine.config import Config
from mmpretrain.registry import MODELS

from ..errors import InputError
from ..files import configs_folder
from ..weights.family import FAMILIES, Family
from ..weights.locating import NeverPublishedError, locate
from ..weights.matching import list_some
from .draft import look_up

# Config with the recipe, by what is swapped
_RECIPES = dict(
    classifier='cls/{}_*0e.py', retinanet='det/{}_retinanet_1x.py',
    maskrcnn='det/{}_maskrcnn_1x.py', fpn='seg/{}_fpn_*0k.py',
    upernet='seg/{}_upernet_*0k.py')


@dataclass(frozen=True)
class FamilySettings:
    """A variant, and the config of it whose settings are taken over.

    Args:
        variant (str): Such as 'soft_small_norm'.
        family (Family): Its family.
        name (str): Path of the config below ``configs/``.
        cfg (Config): That config.
    """

    variant: str
    family: Family
    name: str
    cfg: Config

    @property
    def arch(self) -> dict[str, Any]:
        """Entry of ``ARCHS`` of the backbone."""
        backbone = self.family.variants[self.variant]
        return MODELS.get(backbone['type']).ARCHS[backbone['arch']]

    @property
    def is_published(self) -> bool:
        """Whether there are weights to start from."""
        try:
            locate(self.variant)
        except NeverPublishedError:
            return False
        except InputError:  # the authors' page has them
            pass
        return True

    @property
    def backbone(self) -> dict[str, Any]:
        """Config of the backbone without ``out_indices`` and weights."""
        settings = {key: value for key, value in
                    self.cfg.model.backbone.to_dict().items()
                    if key not in ('out_indices', 'init_cfg', 'out_type')}
        kind = settings['type'].rpartition('.')[2]
        return {**settings, 'type': f'mmpretrain.{kind}'}

    def get(self, *path: str) -> Any:
        """A setting of the config, None if it has none."""
        return look_up(self.cfg.to_dict(), path)


def read_family_settings(variant: str, recipe: str) -> FamilySettings:
    """Read the config of a variant.

    Args:
        variant (str): Prefix of its configs, such as 'soft_small_norm'.
        recipe (str): 'classifier', 'retinanet', 'maskrcnn', 'fpn' or 'upernet'.

    Returns:
        FamilySettings: Its settings.

    Raises:
        InputError: If there is no such variant, or this installation has no configs.
    """
    family = next((f for f in FAMILIES if variant in f.variants), None)
    if family is None:
        known = [name for f in FAMILIES for name in f.variants]
        raise InputError(f'{variant!r} is not a backbone of mm_efficient; expected one '
                         f'of {list_some(known, len(known))}.')
    folder = configs_folder()
    files = sorted(folder.glob(_RECIPES[recipe].format(variant)))
    if not files:
        raise InputError(f'{folder} has no config of {variant} to take settings from. '
                         'Install mm_efficient as docs/installation.md says.')
    return FamilySettings(variant, family, files[0].relative_to(folder).as_posix(),
                          Config.fromfile(files[0]))
