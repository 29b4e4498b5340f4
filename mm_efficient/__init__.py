"""Efficient backbones for OpenMMLab: importing this package registers them."""
from typing import Any

from . import compat
from .version import __version__

compat.apply()  # must run before anything imports mmdet.models or mmseg.models

from . import datasets, engine, hub, models, runs, weights  # noqa: E402
from .models import timm_models  # noqa: E402, F401  registers them in timm

hub.register_classifiers()
hub.register_names()

__all__ = [
    '__version__', 'datasets', 'engine', 'hub', 'models', 'runs', 'swap_backbone',
    'weights'
]


def __getattr__(name: str) -> Any:
    """Import on first use what few programs need."""
    if name == 'swap_backbone':
        from .swap import swap_backbone
        return swap_backbone
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
