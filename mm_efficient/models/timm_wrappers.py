"""Modules with the methods and attributes that timm's models have."""
from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from mmpretrain.models.heads import LinearClsHead
from timm.models import FeatureInfo
from torch import Tensor, nn
from torch.nn.init import trunc_normal_

from ..errors import InputError
from ..weights.loading import match_state_dict
from .base import NUM_STAGES, PyramidBackbone

LINEAR_STD = 0.02  # of the initialisation of classifiers


class TimmModel(nn.Module):
    """What feature models and classifiers have in common.

    Args:
        backbone (PyramidBackbone): The backbone.

    Attributes:
        pretrained_cfg (dict): timm's description of the weights and their images, also
            as ``default_cfg``.
        in_chans (int): Number of image channels.
    """

    pretrained_cfg: dict
    default_cfg: dict

    def __init__(self, backbone: PyramidBackbone):
        super().__init__()
        self.backbone = backbone
        self.in_chans = backbone.in_channels

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass, or do not."""
        for module in self.backbone.modules():
            if hasattr(module, 'with_cp'):
                module.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of layers, for layer-wise learning-rate decay.

        Args:
            coarse (bool): Whether a stage is one layer, instead of a block.
                Defaults to False.
        """
        stage = r'^backbone\.stages\.(\d+)'
        return dict(
            stem=r'^backbone\.stem',
            blocks=stage if coarse else [
                (rf'{stage}\.blocks\.(\d+)', None),
                (rf'{stage}\.norm', (99999, )),
                (stage, (0, ))])

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay: class tokens."""
        return {name for name, _ in self.named_parameters()
                if name.endswith('cls_token')}

    def _stage_info(self) -> list[dict[str, Any]]:
        """timm's description of every stage."""
        return [dict(num_chs=channels, reduction=4 * 2**i, index=i,
                     module=f'backbone.stages.{i}')
                for i, channels in enumerate(self.backbone.feature_channels)]


class FeaturePyramid(TimmModel):
    """A backbone with the interface of timm's ``features_only=True`` models.

    Args:
        backbone (PyramidBackbone): The backbone.
        out_indices (Sequence[int], optional): Stages to return, in this order.
            Defaults to None, those of the backbone.

    Attributes:
        feature_info (FeatureInfo): Channels, reductions and module names of the
            outputs.
        output_fmt (str): Layout of the outputs.
    """

    output_fmt = 'NCHW'

    def __init__(self, backbone: PyramidBackbone,
                 out_indices: Sequence[int] | None = None):
        super().__init__(backbone)
        self.out_indices = tuple(out_indices or backbone.out_indices)
        self.feature_info = FeatureInfo(self._stage_info(), self.out_indices)

    def forward(self, x: Tensor) -> list[Tensor]:
        """(B, C, H, W) -> feature maps (B, C_i, ceil(H / s_i), ceil(W / s_i))."""
        maps = self.backbone(x)
        return [maps[self.backbone.out_indices.index(i)] for i in self.out_indices]

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


class PyramidClassifier(TimmModel):
    """A published classifier with the interface of timm's.

    Its state dict has the names of MMPretrain's ``ImageClassifier``.

    Args:
        backbone (PyramidBackbone): Returns the last feature map, or all tokens, the
            class token first.
        head (ClsHead): Its last layer is ``fc``, in distillation also ``fc_dist``.
        num_classes (int): Number of classes; 0 removes the last layer.
        global_pool (str, optional): 'avg' averages positions, 'token' takes the class
            token, '' returns the features as they are and needs ``num_classes=0``.
            Defaults to None: 'token' if there is one, else 'avg'.
        drop_rate (float): Dropout before the last layer. Defaults to 0.

    Attributes:
        num_features (int): Channels C of the features.
        head_hidden_size (int): Width D of the input of the last layer.
        feature_info (list[dict]): Channels, reduction and module of every stage.

    Raises:
        InputError: If there is no such pooling.
    """

    def __init__(self, backbone: PyramidBackbone, head: Any, num_classes: int,
                 global_pool: str | None = None, drop_rate: float = 0.):
        super().__init__(backbone)
        self.head: Any = head
        self.has_tokens = getattr(backbone, 'out_type', None) == 'raw'
        self.drop_rate = drop_rate
        self.distilled_training = False
        self.num_features = backbone.feature_channels[-1]
        self.head_hidden_size = head.fc.in_features
        self.feature_info = self._stage_info()
        if global_pool is None:
            global_pool = 'token' if self.has_tokens else 'avg'
        self._set_pool(global_pool, num_classes)
        self.num_classes = num_classes
        if num_classes == 0:
            self.reset_classifier(0)

    def _set_pool(self, global_pool: str, num_classes: int) -> None:
        choices = (['token'] if self.has_tokens else []) + ['avg', '']
        if global_pool not in choices:
            raise InputError(f'global_pool must be one of {choices}, got '
                             f'{global_pool!r}')
        if not global_pool and num_classes:
            raise InputError("global_pool='' returns features, which have no classes: "
                             f'pass num_classes=0, got {num_classes}')
        self.global_pool = global_pool

    def forward(self, x: Tensor) -> Any:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images -> map (B, C, h, w), or tokens (B, 1 + h w, C)."""
        last = len(self.backbone.stages) - 1
        if last not in self.backbone.out_indices:  # after pruning
            return self.backbone.run_stages(x, (last, ))[0]
        return self.backbone(x)[-1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Any:
        """Classify features.

        Args:
            x (Tensor): Output of :meth:`forward_features`.
            pre_logits (bool): Return the input of the last layer. Defaults to False.

        Returns:
            Tensor | tuple[Tensor, Tensor]: Logits (B, num_classes); (B, D) if
            ``pre_logits`` or without classes; ``x`` without pooling. With
            :meth:`set_distilled_training`, in training, the logits of both layers.
        """
        if not self.global_pool:
            return x
        x = self.head.pre_logits((self._pool(x), ))
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        if pre_logits:
            return x
        logits = tuple(layer(x) for layer in self._last_layers().values())
        if self.distilled_training and self.training:
            return logits
        return logits[0] if len(logits) == 1 else (logits[0] + logits[1]) / 2

    def _pool(self, x: Tensor) -> Tensor:
        if self.has_tokens:
            return x[:, 0] if self.global_pool == 'token' else x[:, 1:].mean(1)
        # The heads of maps pool them
        return x.mean((2, 3)) if isinstance(self.head, LinearClsHead) else x

    def _last_layers(self) -> dict[str, nn.Module]:
        layers = dict(fc=self.head.fc, fc_dist=getattr(self.head, 'fc_dist', None))
        return {name: layer for name, layer in layers.items() if layer is not None}

    def forward_intermediates(
            self, x: Tensor, indices: int | Sequence[int] | None = None,
            norm: bool = False, stop_early: bool = False, output_fmt: str = 'NCHW',
            intermediates_only: bool = False) -> Any:
        """Compute features and outputs of stages.

        Args:
            x (Tensor): Images.
            indices (int | Sequence[int], optional): Stages, negative ones from the
                end, or a number n for the last n. Defaults to None, all.
            norm (bool): No effect: the norm after the last stage is part of it.
                Defaults to False.
            stop_early (bool): Run no stage after the last one in ``indices``.
                Defaults to False.
            output_fmt (str): Layout of the maps. Defaults to 'NCHW', the only one.
            intermediates_only (bool): Return only the outputs of stages.
                Defaults to False.

        Returns:
            list[Tensor] | tuple[Tensor, list[Tensor]]: Maps (B, C_i, h_i, w_i), in the
            order of the stages; before them the result of :meth:`forward_features`, or
            with ``stop_early`` the output of the last stage that ran.
        """
        if output_fmt != 'NCHW':
            raise InputError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        number = len(self.backbone.stages)
        wanted = {*take_stages(indices, number)}
        last = max(wanted) if stop_early else number - 1
        # The last one is the features, whether it is wanted or not
        *maps, features = self.backbone.run_stages(x, {*wanted, last})
        if last in wanted:
            maps.append(self._as_map(features, x))
        return maps if intermediates_only else (features, maps)

    def _as_map(self, features: Tensor, images: Tensor) -> Tensor:
        if features.ndim == 4:
            return features
        rows, columns = (-(-images.shape[i] // 32) for i in (2, 3))
        return features[:, 1:].transpose(1, 2).unflatten(2, (rows, columns))

    def prune_intermediate_layers(
            self, indices: int | Sequence[int] = 1, prune_norm: bool = False,
            prune_head: bool = True) -> list[int]:
        """Remove what the outputs of given stages do not need.

        Args:
            indices (int | Sequence[int]): See :meth:`forward_intermediates`.
                Defaults to 1, the last stage.
            prune_norm (bool): No effect: a norm is part of its stage.
                Defaults to False.
            prune_head (bool): Remove the classifier also if the last stage stays, and
                return features. Defaults to True.

        Returns:
            list[int]: The stages, counted from the first.
        """
        backbone, total = self.backbone, len(self.backbone.stages)
        stages = take_stages(indices, total)
        number = max(stages) + 1
        if number < total:
            backbone.stages = backbone.stages[:number]
            backbone.num_stages = number
            for name in {*dict(backbone.named_children())} - {'stem', 'stages'}:
                delattr(backbone, name)  # norms after the last stage
            self.num_features = backbone.feature_channels[number - 1]
            self.has_tokens = False
        if prune_head or number < total:
            self.head_hidden_size = self.num_features
            self.head = LinearClsHead(1, self.num_features)
            self.reset_classifier(0, '')
        return [*stages]

    def set_distilled_training(self, enable: bool = True) -> None:
        """Return the logits of both layers in training, as timm's SwiftFormer does."""
        self.distilled_training = enable

    def get_classifier(self) -> Any:
        """Last layer; a tuple of two if there are two."""
        layers = tuple(self._last_layers().values())
        return layers if len(layers) > 1 else layers[0]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None
                         ) -> None:
        """Replace the last layer.

        Args:
            num_classes (int): Number of classes; 0 removes the layer.
            global_pool (str, optional): See the class. Defaults to None, as it is.

        Raises:
            InputError: If there is no such pooling.
        """
        pool = self.global_pool if global_pool is None else global_pool
        self._set_pool(pool, num_classes)
        self.num_classes = num_classes
        like = next(self.backbone.parameters())
        for name in self._last_layers():
            layer: nn.Module = nn.Identity()
            if num_classes:
                layer = nn.Linear(self.head_hidden_size, num_classes,
                                  device=like.device, dtype=like.dtype)
                trunc_normal_(layer.weight, std=LINEAR_STD)
                nn.init.zeros_(layer.bias)
            setattr(self.head, name, layer)


def take_stages(indices: int | Sequence[int] | None,
                number: int = NUM_STAGES) -> tuple[int, ...]:
    """Resolve timm's indices.

    Args:
        indices (int | Sequence[int], optional): None is all, a number n the last n
            stages.
        number (int): Stages of the model. Defaults to 4.

    Returns:
        tuple[int, ...]: Stages, counted from the first.

    Raises:
        InputError: If there is no such stage.
    """
    if indices is None:
        indices = number
    if isinstance(indices, int):
        stages = tuple(range(number - indices, number))
    else:
        stages = tuple(i + number if i < 0 else i for i in indices)
    if not stages or not {*stages} <= {*range(number)}:
        raise InputError(
            f'there are {number} stages: expected a number of them, or indices '
            f'from {-number} to {number - 1}, got {indices}')
    return stages
