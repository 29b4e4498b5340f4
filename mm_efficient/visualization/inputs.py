"""Command line and inputs of the tools that draw maps of a model over an image."""
import argparse
import logging
from typing import NamedTuple

import numpy as np
from mmengine.logging import MMLogger
from rich.console import Console
from torch import Tensor, nn

from ..errors import InputError
from ..files import find_images, read_image
from ..runs.configs import load_config
from ..runs.models import SHORT_SIDES, load_model, model_input
from ..runs.options import tool_parser
from .figures import add_out, check_figure


class Inputs(NamedTuple):
    """An image and the model to run on it.

    Args:
        image (ndarray): RGB, (H, W, 3).
        model (nn.Module): Classifier, detector or segmentor in eval mode.
        x (Tensor): The image as the model's backbone takes it, (1, 3, >=H, >=W).
    """
    image: np.ndarray
    model: nn.Module
    x: Tensor


def image_parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """Make the parser of a tool that draws what a model computes on an image.

    Args:
        description (str, optional): What the tool does, with examples: its
            ``__doc__``.
        out (str): Default output file.

    Returns:
        ArgumentParser: With the options for image, model and output file.
    """
    parser = tool_parser(description)
    parser.add_argument('image', help='image file')
    parser.add_argument('config', help='config file of any task')
    parser.add_argument('--checkpoint', help='weights (default: those named by '
                        'init_cfg of the backbone, else random ones)')
    add_out(parser, out)
    parser.add_argument('--short-side', type=int, metavar='PIXELS', help='resize the '
                        'shorter side of the image to this (default: 224 for '
                        'classifiers, 800 for detectors, 512 for segmentors)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, ... (default: cpu)')
    return parser


def load_inputs(args: argparse.Namespace) -> Inputs:
    """Check the output file, and load the image and the model.

    Args:
        args (Namespace): Arguments of :func:`image_parser`.

    Returns:
        Inputs: Image and model.

    Raises:
        InputError: If one of them cannot be used.
        ExecutionError: If the model cannot be built or its weights cannot be loaded.
    """
    file, *others = find_images(args.image)
    if others:
        raise InputError(f'{args.image} is a folder; expected one image.')
    check_figure(args.out, [args.image])
    if args.short_side is not None and args.short_side < 1:
        raise InputError(f'--short-side is {args.short_side}; expected pixels, 1 or '
                         'more.')
    cfg = load_config(args.config, args.cfg_options, args.mini,
                      num_classes=args.num_classes)
    if cfg.default_scope not in SHORT_SIDES:
        raise InputError(f'{args.config} is for {cfg.default_scope}; expected one of '
                         f'{list(SHORT_SIDES)}.')
    image = read_image(file, args.short_side or SHORT_SIDES[cfg.default_scope])
    MMLogger.get_current_instance().setLevel(logging.WARNING)
    with Console(stderr=True).status('loading the model'):
        model = load_model(cfg, args.checkpoint, args.device)
        return Inputs(image, model, model_input(model, image))
