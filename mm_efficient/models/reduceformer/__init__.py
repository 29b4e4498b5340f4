"""ReduceFormer: attention by sums instead of products of tokens."""
from . import weights  # noqa: F401  registers the family
from .backbone import ReduceFormer

__all__ = ['ReduceFormer']
