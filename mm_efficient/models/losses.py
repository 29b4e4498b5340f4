"""Losses that MMPretrain lacks."""
import torch.nn.functional as F
from mmpretrain.registry import MODELS
from torch import Tensor, nn


@MODELS.register_module()
class SmoothedBCELoss(nn.Module):
    """Binary cross entropy with label smoothing, averaged over images and classes.

    Labels are smoothed to ``1 - e + e / C`` and ``e / C`` as for softmax cross entropy,
    mixed labels accordingly. MMPretrain's ``LabelSmoothLoss(use_sigmoid=True)`` sums
    over the C classes instead, which matters when gradients are clipped by value or
    other losses are added.

    Args:
        label_smooth_val (float): Smoothing ``e``. Defaults to 0.1.
        loss_weight (float): Weight of the loss. Defaults to 1.
    """

    def __init__(self, label_smooth_val: float = 0.1, loss_weight: float = 1.):
        super().__init__()
        self.label_smooth_val = label_smooth_val
        self.loss_weight = loss_weight

    def forward(self, cls_score: Tensor, label: Tensor,
                avg_factor: int | None = None) -> Tensor:
        """Compute the loss.

        Args:
            cls_score (Tensor): Logits, (B, C).
            label (Tensor): Labels, (B, ), or scores that sum to 1, (B, C).
            avg_factor (int, optional): Ignored; MMPretrain's heads pass it.
                Defaults to None.

        Returns:
            Tensor: Scalar loss.
        """
        if label.ndim == 1:
            label = F.one_hot(label, cls_score.shape[1])
        e = self.label_smooth_val
        target = label.to(cls_score.dtype) * (1 - e) + e / cls_score.shape[1]
        return self.loss_weight * F.binary_cross_entropy_with_logits(
            cls_score, target)
