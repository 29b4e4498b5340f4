"""ToyNet: plain convolutions."""
from . import weights  # noqa: F401  registers the family
from .backbone import ToyNet

__all__ = ['ToyNet']
