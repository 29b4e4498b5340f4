from .base import PyramidBackbone
from .soft import SOFT

__all__ = ['PyramidBackbone', 'SOFT']
