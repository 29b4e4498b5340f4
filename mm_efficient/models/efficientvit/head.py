"""Classification head of EfficientViT, LowFormer and ReduceFormer.

Paper: https://arxiv.org/abs/2205.14756. Original:
https://github.com/mit-han-lab/efficientvit, Apache-2.0. Written from the
description.
"""
from collections.abc import Sequence

from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from torch import Tensor, nn

from .blocks import conv_norm_act


@MODELS.register_module()
class EfficientViTClsHead(ClsHead):
    """1x1 convolution, global average pooling and two linear layers.

    It takes feature maps, so the classifier needs no neck.

    Args:
        in_channels (int): Channels of the last stage.
        hidden_dims (Sequence[int]): Widths of the convolution and of the first linear
            layer.
        num_classes (int): Number of classes. Defaults to 1000.
        loss (dict, optional): Config of the loss. Defaults to None, cross
            entropy.
        topk (Sequence[int]): Top-k accuracies during training.
            Defaults to (1, ).
        cal_acc (bool): Compute accuracy during training, which is impossible with soft
            labels. Defaults to False.
        init_cfg (dict | list[dict], optional): Initialisation. Defaults to None,
            the published truncated normal distribution.
    """

    def __init__(self,
                 in_channels: int,
                 hidden_dims: Sequence[int],
                 num_classes: int = 1000,
                 loss: dict | None = None,
                 topk: Sequence[int] = (1, ),
                 cal_acc: bool = False,
                 init_cfg: dict | list[dict] | None = None):
        super().__init__(
            loss or dict(type='CrossEntropyLoss'), topk, cal_acc,
            init_cfg or dict(type='TruncNormal', layer=['Conv2d', 'Linear'], std=0.02))
        conv_dims, linear_dims = hidden_dims
        self.conv = conv_norm_act(in_channels, conv_dims, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.linear = nn.Linear(conv_dims, linear_dims, bias=False)
        self.norm = nn.LayerNorm(linear_dims)
        self.act = nn.Hardswish()
        self.fc = nn.Linear(linear_dims, num_classes)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Compute the input of the last linear layer.

        Args:
            feats (tuple[Tensor]): Feature maps; the last one, (B, in_channels, h, w),
                is used.

        Returns:
            Tensor: (B, hidden_dims[1]).
        """
        x = self.pool(self.conv(feats[-1])).flatten(1)
        return self.act(self.norm(self.linear(x)))

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Feature maps -> logits (B, num_classes)."""
        return self.fc(self.pre_logits(feats))
