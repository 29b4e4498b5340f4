from .base import PyramidBackbone
from .classifiers import DistilledClassifier, MESAClassifier, build_teacher
from .ecoformer import EcoFormerPVT, EcoFormerTwins
from .efficientvit_head import EfficientViTClsHead
from .heads import DistilledClsHead
from .losses import SmoothedBCELoss
from .lowformer import LowFormer
from .reduceformer import ReduceFormer
from .soft import SOFT
from .swiftformer import SwiftFormer

__all__ = [
    'DistilledClassifier', 'DistilledClsHead', 'EcoFormerPVT', 'EcoFormerTwins',
    'EfficientViTClsHead', 'LowFormer', 'MESAClassifier', 'PyramidBackbone',
    'ReduceFormer', 'SOFT', 'SmoothedBCELoss', 'SwiftFormer', 'build_teacher'
]
