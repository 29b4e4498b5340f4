"""SOFT: softmax-free transformers with linear complexity."""
from . import weights  # noqa: F401  registers the family
from .backbone import SOFT

__all__ = ['SOFT']
