from .base import PyramidBackbone
from .ecoformer import EcoFormerPVT, EcoFormerTwins
from .efficientvit_head import EfficientViTClsHead
from .heads import DistilledClsHead
from .lowformer import LowFormer
from .reduceformer import ReduceFormer
from .soft import SOFT
from .swiftformer import SwiftFormer

__all__ = [
    'DistilledClsHead', 'EcoFormerPVT', 'EcoFormerTwins', 'EfficientViTClsHead',
    'LowFormer', 'PyramidBackbone', 'ReduceFormer', 'SOFT', 'SwiftFormer'
]
