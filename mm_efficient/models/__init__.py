from .base import PyramidBackbone
from .ecoformer import EcoFormerPVT, EcoFormerTwins
from .heads import DistilledClsHead
from .soft import SOFT
from .swiftformer import SwiftFormer

__all__ = [
    'DistilledClsHead', 'EcoFormerPVT', 'EcoFormerTwins', 'PyramidBackbone', 'SOFT',
    'SwiftFormer'
]
