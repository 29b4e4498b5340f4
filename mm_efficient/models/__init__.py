"""Backbones, one folder per family, and the parts of their classifiers.

Every folder in here is imported and what its ``__all__`` lists is available from this
package: a new family is a new folder.
"""
import pkgutil
from importlib import import_module

from .base import PyramidBackbone
from .classifiers import DistilledClassifier, MESAClassifier, build_teacher
from .heads import DistilledClsHead
from .losses import SmoothedBCELoss

__all__ = [
    'DistilledClassifier', 'DistilledClsHead', 'MESAClassifier', 'PyramidBackbone',
    'SmoothedBCELoss', 'build_teacher'
]

for _module in pkgutil.iter_modules(__path__):
    if _module.ispkg:
        _package = import_module(f'{__name__}.{_module.name}')
        globals().update({name: getattr(_package, name) for name in _package.__all__})
        __all__ += _package.__all__
