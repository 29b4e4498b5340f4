"""Generated miniature data sets."""
from .mini import CLASSES, MINI_ROOT, PALETTE, generate_dataset

__all__ = ['CLASSES', 'MINI_ROOT', 'PALETTE', 'generate_dataset']
