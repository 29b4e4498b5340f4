"""From a trained model to one that is deployed."""
from .fusing import FusionReport, fuse

__all__ = ['FusionReport', 'fuse']
