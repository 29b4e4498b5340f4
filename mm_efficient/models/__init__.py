from .base import PyramidBackbone
from .ecoformer import EcoFormerPVT, EcoFormerTwins
from .efficientvit_head import EfficientViTClsHead
from .heads import DistilledClsHead
from .lowformer import LowFormer
from .soft import SOFT
from .swiftformer import SwiftFormer

__all__ = [
    'DistilledClsHead', 'EcoFormerPVT', 'EcoFormerTwins', 'EfficientViTClsHead',
    'LowFormer', 'PyramidBackbone', 'SOFT', 'SwiftFormer'
]
