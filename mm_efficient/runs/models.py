"""Photographs: found, checked, and made the input of a model."""

import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..errors import InputError, explain
from ..models.base import fit_where_needed
from ..weights.checking import check_checkpoint
from .model_checks import check_model, check_weights

FOLDER_SUFFIXES = ('.mlpackage', )  # of files that are folders
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
# Shorter side of an image in pixels, as published, by task
SHORT_SIDES = dict(mmpretrain=224, mmdet=800, mmseg=512)


def load_model(cfg: Config, checkpoint: str | None = None,
               device: str = 'cpu') -> nn.Module:
    """The model of a config, ready to look into.

    Args:
        cfg (Config): Config of one of the three tasks.
        checkpoint (str, optional): Weights. Defaults to None: those that ``init_cfg``
            of the config names, or else random ones.
        device (str): Where to put it. Defaults to 'cpu'.

    Returns:
        nn.Module: In eval mode.

    Raises:
        InputError: If it cannot be built, or the weights do not fit.
    """
    check_model(cfg, pretrained=checkpoint is None)
    weights = checkpoint and check_checkpoint(checkpoint)
    if weights:
        check_weights(cfg, weights, checkpoint)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        with explain('the model of the config cannot be built'):
            model = MODELS.build(cfg.model)
        if checkpoint:
            load_checkpoint(model, checkpoint, map_location='cpu', logger='current')
        else:
            torch.manual_seed(0)
            with explain(
                    'the weights that init_cfg of the config names cannot be loaded',
                    'Name a checkpoint, or leave them out: --cfg-options '
                    'model.backbone.init_cfg=None.'):
                model.init_weights()
    model.to(device)
    model.eval()  # of some models of OpenMMLab it returns nothing
    return model


@torch.no_grad()
def model_input(model: nn.Module, photo: np.ndarray) -> Tensor:
    """A photograph as the model gets it, normalised and padded by the model itself.

    EcoFormer's hash functions are fitted to it if they are not fitted at all.

    Args:
        model (nn.Module): Classifier, detector or segmentor of OpenMMLab.
        photo (np.ndarray): RGB, (H, W, 3), uint8.

    Returns:
        Tensor: (1, 3, H', W') on the device of the model, H' and W' at least H, W.

    Raises:
        InputError: If the photograph is too small to fit anything.
    """
    # Pipelines deliver BGR, and the preprocessor turns it round
    image = torch.from_numpy(photo[..., ::-1].transpose(2, 0, 1).copy())
    samples = [BaseDataElement()]
    if 'Cls' in type(model.data_preprocessor).__name__:
        samples = None
    data = dict(inputs=[image], data_samples=samples)
    x = model.data_preprocessor(data, False)['inputs']
    try:
        fit_where_needed(model, x)
    except ValueError as error:
        raise InputError(f'the model is not fitted, and {error}. A larger image or a '
                         'checkpoint of a fitted model helps.') from None
    return x
