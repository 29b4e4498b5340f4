"""EcoFormer: kernelised hashing attention in PVTv2 and Twins-SVT."""
from . import weights  # noqa: F401  registers the family
from .backbone import EcoFormerPVT, EcoFormerTwins

__all__ = ['EcoFormerPVT', 'EcoFormerTwins']
