"""Build the model of a config, and prepare images for it."""
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

# Shorter side of test images in pixels, as published, by task
SHORT_SIDES = dict(mmpretrain=224, mmdet=800, mmseg=512)


def load_model(cfg: Config, checkpoint: str | None = None,
               device: str = 'cpu') -> nn.Module:
    """Build the model of a config and load its weights.

    Args:
        cfg (Config): Config of one of the three tasks.
        checkpoint (str, optional): Weights. Defaults to None: those that ``init_cfg``
            of the config names, else random ones.
        device (str): Where to put it. Defaults to 'cpu'.

    Returns:
        nn.Module: In eval mode.

    Raises:
        InputError: If the config's backbone is wrong, or the weights are missing or
            do not fit.
        ExecutionError: If the model cannot be built or its weights cannot be loaded.
    """
    check_model(cfg, pretrained=checkpoint is None)
    weights = None if checkpoint is None else check_checkpoint(checkpoint)
    if checkpoint is not None and weights is not None:
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
                    'Name a checkpoint, or start from random weights: --cfg-options '
                    'model.backbone.init_cfg=None.'):
                model.init_weights()
    with explain(f'the model cannot be moved to device {device!r}'):
        model.to(device)
    model.eval()  # some models of OpenMMLab return None
    return model


@torch.no_grad()
def model_input(model: nn.Module, photo: np.ndarray) -> Tensor:
    """Normalise and pad an image as the model does.

    Fits EcoFormer's hash functions to it if they have not been fitted.

    Args:
        model (nn.Module): Classifier, detector or segmentor of OpenMMLab.
        photo (np.ndarray): RGB image, (H, W, 3), uint8.

    Returns:
        Tensor: (1, 3, H', W') on the device of the model, H' and W' at least H, W.

    Raises:
        InputError: If the image is too small to fit hash functions to.
        ExecutionError: If the model's normalisation fails.
    """
    # Pipelines give BGR images, and the preprocessor converts them to RGB
    image = torch.from_numpy(photo[..., ::-1].transpose(2, 0, 1).copy())
    samples: list | None = [BaseDataElement()]
    if 'Cls' in type(model.data_preprocessor).__name__:
        samples = None
    data = dict(inputs=[image], data_samples=samples)
    with explain('the data_preprocessor of the model does not take the image'):
        x = model.data_preprocessor(data, False)['inputs']
    try:
        fit_where_needed(model, x)
    except ValueError as error:
        raise InputError(f'The hash functions are not fitted, and {error}. Use a '
                         'larger image or a checkpoint of a fitted model.') from None
    return x
