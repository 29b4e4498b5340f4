from .base import PyramidBackbone
from .heads import DistilledClsHead
from .soft import SOFT
from .swiftformer import SwiftFormer

__all__ = ['DistilledClsHead', 'PyramidBackbone', 'SOFT', 'SwiftFormer']
