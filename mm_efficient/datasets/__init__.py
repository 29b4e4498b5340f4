"""Generated miniature data sets."""
from .mini import CLASSES, MINI_ROOT, PALETTE, prepare

__all__ = ['CLASSES', 'MINI_ROOT', 'PALETTE', 'prepare']
