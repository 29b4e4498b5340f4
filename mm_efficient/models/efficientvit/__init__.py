"""What LowFormer and ReduceFormer share, built on EfficientViT's design."""
from .head import EfficientViTClsHead

__all__ = ['EfficientViTClsHead']
