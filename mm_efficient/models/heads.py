"""Classification heads."""
import torch
import torch.nn.functional as F
from mmpretrain.models.heads import ClsHead
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn


@MODELS.register_module()
class DistilledClsHead(ClsHead):
    """Batch norm, global average pooling and two parallel linear classifiers.

    The second classifier learns from a teacher, as in SwiftFormer
    (https://arxiv.org/abs/2303.15446); see
    :class:`~mm_efficient.models.DistilledClassifier`. Without a teacher both learn from
    the true labels with equal weight. Evaluation averages their logits.

    Args:
        num_classes (int): Number of classes.
        in_channels (int): Channels C of the last feature map.
        loss (dict, optional): Loss of each classifier. Defaults to None, cross
            entropy.
        init_cfg (dict, optional): Initialisation. Defaults to None: truncated normal
            linear layers with standard deviation 0.02.
    """

    def __init__(self,
                 num_classes: int,
                 in_channels: int,
                 loss: dict | None = None,
                 init_cfg: dict | None = None):
        super().__init__(
            loss=loss or dict(type='CrossEntropyLoss'),
            init_cfg=init_cfg or dict(
                type='TruncNormal', layer='Linear', std=0.02))
        self.norm: nn.Module = nn.BatchNorm2d(in_channels)
        self.fc = nn.Linear(in_channels, num_classes)
        self.fc_dist: nn.Linear | None = nn.Linear(in_channels, num_classes)

    def pre_logits(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Normalise and average the last feature map, (B, C, H, W) -> (B, C)."""
        return self.norm(feats[-1]).mean((2, 3))

    def forward(self,
                feats: tuple[Tensor, ...]) -> Tensor | tuple[Tensor, Tensor]:
        """Compute logits.

        Args:
            feats (tuple[Tensor]): Feature maps; the last one, (B, C, H, W), is used.

        Returns:
            Tensor | tuple[Tensor, Tensor]: In evaluation the average logits,
            (B, num_classes); in training the logits of both classifiers, the one of
            the true labels first.
        """
        x = self.pre_logits(feats)
        if self.fc_dist is None:  # see switch_to_deploy
            return self.fc(x)
        logits, dist_logits = self.fc(x), self.fc_dist(x)
        if self.training:
            return logits, dist_logits
        return (logits + dist_logits) / 2

    @torch.no_grad()
    def switch_to_deploy(self) -> None:
        """Fold norm and classifiers into one linear layer, for inference.

        Averaging over positions in between commutes with the norm.
        """
        if self.fc_dist is None:
            return
        norm = self.norm
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        shift = norm.bias - scale * norm.running_mean
        weight = (self.fc.weight + self.fc_dist.weight) / 2
        bias = (self.fc.bias + self.fc_dist.bias) / 2
        self.fc.weight.copy_(weight * scale)
        self.fc.bias.copy_(bias + weight @ shift)
        self.norm = nn.Identity()
        self.fc_dist = None

    def loss(self, feats: tuple[Tensor, ...], data_samples: list[DataSample],
             teacher_labels: Tensor | None = None) -> dict[str, Tensor]:
        """Compute half the loss of each classifier.

        Args:
            feats (tuple[Tensor]): As for :meth:`forward`.
            data_samples (list[DataSample]): Labels, or scores after Mixup and
                CutMix.
            teacher_labels (Tensor, optional): Labels of the second classifier, (B, ),
                for plain cross entropy. Defaults to None: the same loss as the first.

        Returns:
            dict[str, Tensor]: ``loss_cls`` and ``loss_dist``.
        """
        logits, dist_logits = self(feats)
        if teacher_labels is None:
            loss_dist = self._get_loss(dist_logits, data_samples)['loss']
        else:
            loss_dist = F.cross_entropy(dist_logits, teacher_labels)
        return dict(loss_cls=self._get_loss(logits, data_samples)['loss'] / 2,
                    loss_dist=loss_dist / 2)
