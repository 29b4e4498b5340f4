"""Efficient backbones for OpenMMLab: importing this package registers them."""
from . import compat
from .version import __version__

compat.apply()  # must run before anything imports mmdet.models or mmseg.models

from . import checkpoints, datasets, engine, models  # noqa: E402

__all__ = ['__version__', 'checkpoints', 'datasets', 'engine', 'models']
