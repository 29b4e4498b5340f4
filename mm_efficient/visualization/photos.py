"""Photographs: found, checked, and made the input of a model."""
import tempfile
from collections.abc import Sequence
from pathlib import Path

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import load_checkpoint
from mmengine.structures import BaseDataElement
from PIL import Image, UnidentifiedImageError
from torch import Tensor, nn

from ..engine.checks import SetupError, check_checkpoint, failing_as
from ..engine.model_checks import check_model, check_weights
from ..models import PyramidBackbone

FOLDER_SUFFIXES = ('.mlpackage', )  # of files that are folders
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')
# Shorter side of an image in pixels, as published, by task
SHORT_SIDES = dict(mmpretrain=224, mmdet=800, mmseg=512)


def find_images(source: str) -> list[Path]:
    """Image files that a path stands for.

    Args:
        source (str): An image, or a folder whose images are wanted (subfolders are
            not searched).

    Returns:
        list[Path]: At least one file, sorted, all of which start like an image.

    Raises:
        SetupError: If there is none, or one is not an image.
    """
    path = Path(source)
    if not path.exists():
        raise SetupError(f'{path} does not exist (current folder: {Path.cwd()}); '
                         'expected an image or a folder of images.')
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir()
                       if file.suffix.lower() in IMAGE_SUFFIXES)
        if not files:
            raise SetupError(f'{path} has no image directly in it; expected files '
                             f'named {" ".join("*" + s for s in IMAGE_SUFFIXES)}.')
    for file in files:
        try:
            with Image.open(file) as image:
                image.verify()
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise SetupError(f'{file} is not an image that can be read '
                             f'({error}); expected JPEG, PNG or the like.') from None
    return files


def read_photo(path: str | Path, short_side: int | None = None) -> np.ndarray:
    """Read an image, the way OpenMMLab's pipelines do.

    Args:
        path (str | Path): The file.
        short_side (int, optional): Resize the shorter side to this many pixels and
            keep the aspect. Defaults to None, as it is.

    Returns:
        np.ndarray: RGB, (H, W, 3), uint8.

    Raises:
        SetupError: If it cannot be read.
    """
    image = mmcv.imread(str(path), channel_order='rgb')
    if image is None:
        raise SetupError(f'{path} cannot be read as an image; is it truncated?')
    if short_side:
        height, width = image.shape[:2]
        scale = short_side / min(height, width)
        image = mmcv.imresize(image, (round(width * scale), round(height * scale)))
    return image


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
        SetupError: If it cannot be built, or the weights do not fit.
    """
    check_model(cfg, pretrained=checkpoint is None)
    weights = checkpoint and check_checkpoint(checkpoint)
    if weights:
        check_weights(cfg, weights, checkpoint)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        with failing_as('the model of the config cannot be built'):
            model = MODELS.build(cfg.model)
        if checkpoint:
            load_checkpoint(model, checkpoint, map_location='cpu', logger='current')
        else:
            torch.manual_seed(0)
            with failing_as(
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
        SetupError: If the photograph is too small to fit anything.
    """
    # Pipelines deliver BGR, and the preprocessor turns it round
    image = torch.from_numpy(photo[..., ::-1].transpose(2, 0, 1).copy())
    samples = [BaseDataElement()]
    if 'Cls' in type(model.data_preprocessor).__name__:
        samples = None
    data = dict(inputs=[image], data_samples=samples)
    x = model.data_preprocessor(data, False)['inputs']
    backbone = model.backbone
    if isinstance(backbone, PyramidBackbone) and not backbone.is_fitted:
        try:
            backbone.fit(x)
        except ValueError as error:
            raise SetupError(f'the model is not fitted, and {error}. A larger --size '
                             'or a checkpoint of a fitted model helps.') from None
    return x


def check_output(path: str | Path, suffixes: Sequence[str]):
    """Check, before any work, that a file can be written.

    Args:
        path (str | Path): The file; its folder is created.
        suffixes (Sequence[str]): What its name may end with.

    Raises:
        SetupError: If it cannot.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise SetupError(f'{path}: the name of an output file has to end with '
                         f'{" or ".join(suffixes)}.')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SetupError(f'The folder of {path} cannot be created: '
                         f'{error}.') from None
    if path.is_dir() and path.suffix not in FOLDER_SUFFIXES:
        raise SetupError(f'{path} cannot be written: it is a folder.')
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise SetupError(f'{path} cannot be written: {error}.') from None
