"""LowFormer: fused convolutions, and attention at a coarser grid."""
from . import weights  # noqa: F401  registers the family
from .backbone import LowFormer

__all__ = ['LowFormer']
