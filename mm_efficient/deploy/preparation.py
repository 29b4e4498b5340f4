"""Prepare the model of a config for :func:`~.exporting.export`."""
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from torch import Tensor

from ..errors import InputError, explain
from ..runs.inference import dataset_meta
from ..runs.models import load_model, model_input
from ..weights.checking import check_checkpoint
from .models import deploy_model
from .samples import randomize, sample_images

DEFAULT_SHAPES = dict(mmpretrain=(224, 224), mmdet=(256, 320), mmseg=(256, 320))


class ExportInputs(NamedTuple):
    """Arguments of :func:`~.exporting.export`.

    Args:
        model (nn.Module): Whole model, or its backbone.
        images (list[Tensor]): Batches to compare on.
        metadata (dict[str, Any]): Task, classes, input format, and the source of the
            weights: the checkpoint file, 'init_cfg' or 'random'.
    """
    model: Any
    images: list[Tensor]
    metadata: dict[str, Any]


def prepare_export(cfg: Config, checkpoint: str | None = None, *,
                   files: Sequence[Path] = (), shape: tuple[int, int] | None = None,
                   static: bool = False, backbone: bool = False) -> ExportInputs:
    """Load a model and images to export it with.

    Random weights are modified so that all of them affect the output.

    Args:
        cfg (Config): Config of any task.
        checkpoint (str, optional): Weights. Defaults to None: those of ``init_cfg``, or
            else random ones.
        files (Sequence[Path]): Images to compare on. Defaults to (): synthetic scenes.
        shape (tuple[int, int], optional): Height and width of the first batch. Defaults
            to None: 224 x 224 for classifiers, otherwise 256 x 320.
        static (bool): Whether the export is for this shape only. Defaults to False.
        backbone (bool): Whether to export only the backbone. Defaults to False.

    Returns:
        ExportInputs: The model, images and metadata.

    Raises:
        InputError: If the checkpoint does not fit the config, or the model cannot be
            exported.
        ExecutionError: If the model cannot be built or run.
    """
    model = load_model(cfg, checkpoint)
    if cfg.default_scope not in DEFAULT_SHAPES:
        raise InputError(f'the config is for {cfg.default_scope}; expected one of '
                         f'{list(DEFAULT_SHAPES)}.')
    height, width = shape or DEFAULT_SHAPES[cfg.default_scope]
    with explain(f'images of {height} x {width} pixels cannot be made'):
        images = sample_images(files, (height, width))
    images = images[:1] if static else images
    weights = check_checkpoint(checkpoint) if checkpoint else None
    metadata = dict(
        weights=checkpoint or ('init_cfg' if _has_pretrained(cfg.model) else 'random'),
        task=cfg.default_scope,
        classes=list(dataset_meta(cfg, weights or {})['classes']),
        input='normalised' if backbone else 'RGB, 0 to 255')
    normalised = [torch.cat([model_input(model, image.permute(1, 2, 0).byte().numpy())
                             for image in batch]) for batch in images]
    if metadata['weights'] == 'random':
        shapes = ', '.join(' x '.join(map(str, batch.shape)) for batch in images)
        with explain(f'the model cannot run images of {shapes}',
                     'Choose other shapes with --shape and --static.'):
            randomize(deploy_model(model), lambda model, x: model.network(x), images)
    if backbone:
        return ExportInputs(model.backbone, normalised, metadata)
    return ExportInputs(model, images, metadata)


def _has_pretrained(cfg: Any) -> bool:
    """Whether an ``init_cfg`` anywhere in a model config loads pretrained weights."""
    if isinstance(cfg, (list, tuple)):
        return any(map(_has_pretrained, cfg))
    return isinstance(cfg, dict) and (
        cfg.get('type') == 'Pretrained' or any(map(_has_pretrained, cfg.values())))
