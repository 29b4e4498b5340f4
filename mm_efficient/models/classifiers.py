"""Classifiers that learn from another model beside the labels."""
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
    """Keeps a module out of the parameters, checkpoints and copies of another."""

    def __init__(self, module: nn.Module):
        self.module = module

    def __deepcopy__(self, memo: dict) -> '_Companion':
        return self


@MODELS.register_module()
class DistilledClassifier(ImageClassifier):
    """Classifier that learns the labels a frozen teacher gives, too.

    Hard distillation, https://arxiv.org/abs/2012.12877: the teacher sees the images
    as the student does, mixed and augmented, and its most likely class is the label
    of a second classifier in the head. The teacher is built and read when the
    training starts; it is no part of the model: not of its parameters, checkpoints
    and averages.

    Args:
        teacher (dict, optional): Config of any model of MMPretrain whose output in
            ``mode='tensor'`` are logits, ``TimmClassifier`` for models of timm, and
            ``checkpoint``, the file or address of its weights. Defaults to None, to
            learn from the labels alone.
        backbone (dict): As of ``ImageClassifier``.
        neck (dict, optional): As of ``ImageClassifier``. Defaults to None.
        head (dict, optional): A :class:`~mm_efficient.models.DistilledClsHead`.
            Defaults to None.
        pretrained (str, optional): As of ``ImageClassifier``. Defaults to None.
        train_cfg (dict, optional): As of ``ImageClassifier``. Defaults to None.
        data_preprocessor (dict, optional): As of ``ImageClassifier``.
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
        """Loss against the labels, and against those of the teacher.

        Args:
            inputs (Tensor): Preprocessed images, (B, 3, H, W).
            data_samples (list[DataSample]): Their labels, or scores.

        Returns:
            dict[str, Tensor]: See ``DistilledClsHead.loss``.

        Raises:
            CheckpointError: If the weights of the teacher cannot be loaded.
        """
        feats = self.extract_feat(inputs)
        if self.teacher_cfg is None:
            return self.head.loss(feats, data_samples)
        return self.head.loss(feats, data_samples, self.teacher_labels(inputs))

    @torch.no_grad()
    def teacher_labels(self, inputs: Tensor) -> Tensor:
        """The teacher's most likely classes, (B, 3, H, W) -> (B, )."""
        if self._teacher is None:
            teacher = build_teacher(self.teacher_cfg or {})
            self._teacher = _Companion(teacher.to(inputs.device))
        return self._teacher.module(inputs, mode='tensor').argmax(1)


def build_teacher(cfg: dict) -> nn.Module:
    """Build a frozen teacher with its weights.

    Args:
        cfg (dict): See :class:`DistilledClassifier`.

    Returns:
        nn.Module: In evaluation mode, without gradients.

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
    """Classifier that may learn from its own average as well.

    Memory-efficient sharpness-aware training, https://arxiv.org/abs/2205.14083, in
    the form of EfficientViT's trainer: binary cross entropy against the sigmoid of
    the logits the average has for the same images. It is switched on by
    :class:`~mm_efficient.engine.MESAHook`, which sets ``mesa`` to the averaged model
    and the weight of the loss. Arguments as of ``ImageClassifier``.
    """

    mesa: tuple[nn.Module, float] | None = None

    def loss(self, inputs: Tensor, data_samples: list[DataSample]) -> dict[str, Tensor]:
        """Loss against the labels, and against the average if it is time.

        Args:
            inputs (Tensor): Preprocessed images, (B, 3, H, W).
            data_samples (list[DataSample]): Their labels, or scores.

        Returns:
            dict[str, Tensor]: Losses of the head, and ``loss_mesa``.
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
