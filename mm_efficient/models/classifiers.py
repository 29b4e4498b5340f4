"""Classifiers that learn from another model besides the labels."""
import copy

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from mmpretrain.models.classifiers import ImageClassifier
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from ..weights.loading import load_weights


class _Companion:
    """Excludes a module from its owner's parameters, checkpoints and copies."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __deepcopy__(self, memo: dict) -> '_Companion':
        return self


@MODELS.register_module()
class DistilledClassifier(ImageClassifier):
    """Classifier that also learns from the labels of a frozen teacher.

    Hard distillation, https://arxiv.org/abs/2012.12877: the teacher sees the same mixed
    and augmented images as the student, and its top class is the label of a second
    classifier in the head. The teacher is built and loaded when training starts. It is
    not part of the model's parameters, checkpoints or averages.

    Args:
        backbone (dict): As in ``ImageClassifier``.
        teacher (dict, optional): Config of any MMPretrain model that returns logits in
            ``mode='tensor'`` (``TimmClassifier`` for timm's), plus ``checkpoint``, the
            file or URL of its weights. Defaults to None, no teacher.
        neck (dict, optional): As in ``ImageClassifier``. Defaults to None.
        head (dict, optional): A :class:`~mm_efficient.models.DistilledClsHead`.
            Defaults to None.
        pretrained (str, optional): As in ``ImageClassifier``. Defaults to None.
        train_cfg (dict, optional): As in ``ImageClassifier``. Defaults to None.
        data_preprocessor (dict, optional): As in ``ImageClassifier``.
            Defaults to None.
        init_cfg (dict, optional): Initialisation. Defaults to None.
    """

    def __init__(self,
                 backbone: dict,
                 teacher: dict | None = None,
                 neck: dict | None = None,
                 head: dict | None = None,
                 pretrained: str | None = None,
                 train_cfg: dict | None = None,
                 data_preprocessor: dict | None = None,
                 init_cfg: dict | None = None):
        super().__init__(backbone, neck, head, pretrained, train_cfg,
                         data_preprocessor, init_cfg)
        self.teacher_cfg = teacher
        self._teacher: _Companion | None = None

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Compute the losses against the labels and against the teacher's labels.

        Args:
            inputs (Tensor): Preprocessed images, (B, 3, H, W).
            data_samples (list[DataSample]): Their labels or scores.

        Returns:
            dict[str, Tensor]: See ``DistilledClsHead.loss``.

        Raises:
            CheckpointError: If the teacher's weights cannot be loaded.
        """
        feats = self.extract_feat(inputs)
        if self.teacher_cfg is None:
            return self.head.loss(feats, data_samples)
        return self.head.loss(feats, data_samples, self.teacher_labels(inputs))

    @torch.no_grad()
    def teacher_labels(self, inputs: Tensor) -> Tensor:
        """Predict the teacher's top classes, (B, 3, H, W) -> (B, )."""
        if self._teacher is None:
            teacher = build_teacher(self.teacher_cfg or {})
            self._teacher = _Companion(teacher.to(inputs.device))
        return self._teacher.module(inputs, mode='tensor').argmax(1)


def build_teacher(cfg: dict) -> nn.Module:
    """Build a frozen teacher with its weights.

    Args:
        cfg (dict): See :class:`DistilledClassifier`.

    Returns:
        nn.Module: In eval mode, without gradients.

    Raises:
        CheckpointError: If the weights are missing or do not fit completely.
    """
    cfg = copy.deepcopy(cfg)
    checkpoint = cfg.pop('checkpoint')
    teacher = MODELS.build(cfg)
    load_weights(teacher, checkpoint)
    print_log(f'Teacher: {cfg.get("model_name", cfg["type"])} with {checkpoint}',
              logger='current')
    return teacher.eval().requires_grad_(False)


@MODELS.register_module()
class MESAClassifier(ImageClassifier):
    """Classifier that can also learn from its own exponential moving average.

    Memory-efficient sharpness-aware training (MESA), https://arxiv.org/abs/2205.14083,
    as in EfficientViT's trainer: binary cross entropy against the sigmoid of the
    averaged model's logits for the same images.
    :class:`~mm_efficient.engine.MESAHook` switches it on by setting ``mesa`` to the
    averaged model and the loss weight. Arguments as in ``ImageClassifier``.
    """

    mesa: tuple[nn.Module, float] | None = None

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Compute the loss against the labels, and against the average if active.

        Args:
            inputs (Tensor): Preprocessed images, (B, 3, H, W).
            data_samples (list[DataSample]): Their labels or scores.

        Returns:
            dict[str, Tensor]: Losses of the head, plus ``loss_mesa`` if active.
        """
        if self.mesa is None:
            return super().loss(inputs, data_samples)
        averaged, weight = self.mesa
        logits = self.head(self.extract_feat(inputs))
        with torch.no_grad():
            target = averaged(inputs, mode='tensor').sigmoid()
        losses = self.head._get_loss(logits, data_samples)
        losses['loss_mesa'] = weight * F.binary_cross_entropy_with_logits(
            logits, target)
        return losses
