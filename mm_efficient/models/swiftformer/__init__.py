"""SwiftFormer: convolutions, and one additive attention per stage."""
from . import weights  # noqa: F401  registers the family
from .backbone import SwiftFormer

__all__ = ['SwiftFormer']
