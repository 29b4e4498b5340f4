# ImageNet-1K classifier with the head of EfficientViT, for LowFormer and ReduceFormer.
# It takes maps. A leaf adds the backbone, `in_channels` and `hidden_dims`.
_base_ = './classifier.py'

model = dict(
    head=dict(
        type='EfficientViTClsHead', init_cfg=dict(layer=['Conv2d', 'Linear'])))
