"""Our backbones as timm models named ``mm_<variant>``.

Like timm's own feature models, ``timm.create_model('mm_soft_small',
features_only=True)`` returns a list of feature maps and has ``feature_info``. The
prefix distinguishes our SwiftFormer and LowFormer from timm's.
"""
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from timm.models import FeatureInfo, register_model
from torch import Tensor, nn

from ..weights.family import FAMILIES
from ..weights.loading import load_pretrained, match_state_dict
from .base import NUM_STAGES, PyramidBackbone

__all__ = ['FeaturePyramid']

PREFIX = 'mm_'


class FeaturePyramid(nn.Module):
    """A backbone with the interface of timm's ``features_only=True`` models.

    Args:
        backbone (PyramidBackbone): The backbone.

    Attributes:
        feature_info (FeatureInfo): Channels, reductions and module names of the
            outputs.
    """

    def __init__(self, backbone: PyramidBackbone):
        super().__init__()
        self.backbone = backbone
        self.feature_info = FeatureInfo(
            [dict(num_chs=channels, reduction=4 * 2**i, module=f'backbone.stages.{i}')
             for i, channels in enumerate(backbone.feature_channels)],
            backbone.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> feature maps (B, C_i, ceil(H / s_i), ceil(W / s_i))."""
        return list(self.backbone(x))

    def load_state_dict(self, state_dict: Mapping[str, Tensor], strict: bool = True,
                        assign: bool = False) -> Any:
        """Load our own state dict, or the backbone's part of a classifier or detector.

        So ``timm.create_model(..., checkpoint_path=FILE)`` accepts files written by
        ``tools/model_converters/convert.py``.

        Args:
            state_dict (dict[str, Tensor]): Weights.
            strict (bool): Raise an error if the weights do not fit. Defaults to True.
            assign (bool): Use the tensors instead of copying them. Defaults to False.

        Raises:
            CheckpointError: If ``strict`` and they do not fit.
        """
        if not strict:
            return super().load_state_dict(state_dict, False, assign)
        weights = match_state_dict(self.backbone, state_dict, 'the state dict')
        return self.backbone.load_state_dict(weights, False, assign)


def _entrypoint(variant: str, backbone_cfg: Mapping) -> Callable[..., FeaturePyramid]:
    """Make the function that ``timm.create_model`` calls."""

    def create(pretrained: bool = False,
               pretrained_cfg: Mapping | None = None,
               pretrained_cfg_overlay: Mapping | None = None,
               cache_dir: str | Path | None = None,
               features_only: bool = False,
               out_indices: int | Sequence[int] | None = None,
               in_chans: int = 3,
               drop_path_rate: float | None = None) -> FeaturePyramid:
        if not features_only:
            raise ValueError(
                f'{PREFIX}{variant} is a backbone for timm: pass features_only=True. '
                "Classifiers come from mmpretrain.get_model")
        if isinstance(pretrained_cfg, str):
            raise ValueError(f'{PREFIX}{variant} has no tags, got {pretrained_cfg!r}')
        settings = dict(backbone_cfg, in_channels=in_chans,
                        out_indices=_stages(out_indices))
        if drop_path_rate is not None:
            settings.update(drop_path_rate=drop_path_rate)
        weights = {**(pretrained_cfg or {}), **(pretrained_cfg_overlay or {})}
        source = weights.get('file') or f'published://{variant}'
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            backbone = MODELS.build(settings)
        _init_weights(backbone)
        if pretrained:
            load_pretrained(backbone, str(source))
        return FeaturePyramid(backbone)

    create.__name__ = create.__qualname__ = f'{PREFIX}{variant}'
    return create


def _stages(out_indices: int | Sequence[int] | None) -> tuple[int, ...]:
    """Resolve timm's ``out_indices``: None is all, a number n the last n stages."""
    stages = range(NUM_STAGES)
    if out_indices is None:
        return tuple(stages)
    if isinstance(out_indices, int):
        return tuple(stages[-out_indices:])
    return tuple(i + NUM_STAGES if i < 0 else i for i in out_indices)


def _init_weights(backbone: PyramidBackbone) -> None:
    """Initialise without MMEngine's log, which has several lines per parameter."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        backbone.init_weights()
    finally:
        logger.setLevel(level)


for _family in FAMILIES:
    for _variant, _backbone in _family.variants.items():
        _create = _entrypoint(_variant, {**_backbone, **_family.dense})
        globals()[_create.__name__] = _create  # timm adds the name to __all__
        register_model(_create)
