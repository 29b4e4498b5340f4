"""Efficient backbones for OpenMMLab: importing this package registers them."""
from . import compat
from .version import __version__

compat.apply()  # must run before anything imports mmdet.models or mmseg.models

from . import checkpoints, datasets, engine, hub, models, timm_models  # noqa: E402

hub.register_classifiers()

__all__ = [
    '__version__', 'checkpoints', 'datasets', 'engine', 'hub', 'models', 'timm_models'
]
