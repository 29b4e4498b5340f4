"""Models by name or config, ready to be counted."""
import argparse
import copy
import difflib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import mmpretrain
import timm
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope
from mmpretrain.apis import ModelHub
from timm.layers import to_2tuple
from torch import Tensor, nn

from ..errors import InputError, explain
from ..files import config_files
from ..runs.configs import load_config
from .complexity import Complexity, count

# Image size, height and width, by task: of ImageNet, COCO and ADE20K as published
SIZES = dict(mmpretrain=(224, 224), mmdet=(800, 1344), mmseg=(512, 512))
NUM_PROPOSALS = 1000  # regions that a box head sees, if the config does not say
NUM_DETECTIONS = 100  # regions that a mask head sees, likewise


class Subject(NamedTuple):
    """A model and how it is run.

    Args:
        name (str): As it was asked for.
        build (Callable): Makes the model, with random weights.
        run (Callable): Calls a model with images of (B, 3, H, W) the way inference
            does, up to what depends on the values in them.
        size (tuple[int, int]): Usual height and width of its images.
    """
    name: str
    build: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor], Any]
    size: tuple[int, int]


def image_size(text: str) -> tuple[int, int]:
    """Size of an image on a command line, for ``argparse``.

    Args:
        text (str): ``224``, or height and width as ``800x1344``.

    Returns:
        tuple[int, int]: Height and width.

    Raises:
        argparse.ArgumentTypeError: If it is neither.
    """
    try:
        sides = [int(side) for side in text.lower().split('x')]
    except ValueError:
        sides = []
    if len(sides) not in (1, 2) or min(sides) < 1:
        raise argparse.ArgumentTypeError(
            f'{text!r} is no size; expected 224, or 800x1344 (height x width)')
    return sides[0], sides[-1]


def find_model(name: str, options: dict | None = None) -> Subject:
    """Find a model.

    Args:
        name (str): One of

            - a config file of classification, detection or segmentation;
            - a config of this package by its name (``soft_small_maskrcnn_1x``), or
              the classifier of a variant (``soft_small``);
            - a model of MMPretrain's index (``swin-tiny_16xb64_in1k``);
            - a model of timm (``resnet50``, or ``timm/resnet50`` where MMPretrain
              has one of that name).
        options (dict, optional): Overrides of its config by dotted key.
            Defaults to None.

    Returns:
        Subject: The model.

    Raises:
        InputError: If there is none, or its config cannot be used.
    """
    if name.endswith('.py'):
        return from_config(load_config(name, options), Path(name).stem)
    for path in config_files():
        if name in (path.stem, _variant(path)):
            return from_config(load_config(str(path), options), name)
    if name in mmpretrain.list_models():
        cfg = ModelHub.get(name).config
        cfg.merge_from_dict(options or {})
        return from_config(cfg, name)
    model_name = name.removeprefix('timm/')
    if timm.is_model(model_name):
        if options:
            raise InputError(f'{name} is a model of timm and has no config to change')
        return Subject(name, lambda: timm.create_model(model_name), _call,
                       SIZES['mmpretrain'])
    raise InputError(_unknown(name))


def _variant(path: Path) -> str | None:
    """The variant a classifier's config, <variant>_<schedule>.py, is of."""
    return path.stem.rpartition('_')[0] if path.parent.name == 'cls' else None


def _unknown(name: str) -> str:
    names = {*mmpretrain.list_models(), *timm.list_models()}
    for path in config_files():
        names |= {path.stem, _variant(path) or path.stem}
    close = difflib.get_close_matches(name, sorted(names), 5)
    return (f'there is no model {name!r}: name a config file, a variant or config of '
            'mm_efficient, or a model of MMPretrain or timm'
            + (f'; similar: {", ".join(close)}' if close else ''))


def from_config(cfg: Config, name: str) -> Subject:
    """The model of a config.

    Args:
        cfg (Config): Config with ``default_scope`` and ``model``.
        name (str): What to call it.

    Returns:
        Subject: The model.
    """
    scope = cfg.default_scope

    def build():
        with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # about losses, deprecation
            return MODELS.build(copy.deepcopy(cfg.model))
    return Subject(name, build, _RUNS[scope], _size(cfg))


def _size(cfg: Config) -> tuple[int, int]:
    """Height and width of test images; of classifiers those of the crop."""
    if cfg.default_scope == 'mmpretrain':
        loader = cfg.get('test_dataloader') or {}
        for transform in loader.get('dataset', {}).get('pipeline', []):
            if transform['type'] == 'CenterCrop':
                return to_2tuple(transform['crop_size'])
    return SIZES[cfg.default_scope]


def complexity(subject: Subject, size: tuple[int, int] | None = None) -> Complexity:
    """Count one image of a model.

    On the meta device where the model can be run there, in seconds whatever the size.

    Args:
        subject (Subject): The model.
        size (tuple[int, int], optional): Height and width of the image.
            Defaults to None, the usual one.

    Returns:
        Complexity: What was counted.
    """
    return on_some_device(
        subject, size, lambda model, x: count(model, x, subject.run))


def on_some_device(subject: Subject, size: tuple[int, int] | None,
                   function: Callable[[nn.Module, Tensor], Any]) -> Any:
    """Call ``function(model, image)`` on the meta device, or else on the CPU.

    Args:
        subject (Subject): The model.
        size (tuple[int, int], optional): Height and width. Defaults to None.
        function (Callable): What to do.

    Returns:
        Any: What ``function`` returns.

    Raises:
        InputError: If the model cannot be run.
    """
    shape = (1, 3, *(size or subject.size))
    try:
        return function(_build_on_meta(subject), torch.empty(shape, device='meta'))
    except Exception as error:  # what depends on values fails in many ways
        reason = str(error).strip().partition('\n')[0]
    print_log(f'{subject.name} cannot be run without data ({reason}): run with random '
              'weights, which takes longer', logger='current')
    torch.manual_seed(0)
    with explain(f'{subject.name} cannot be run on an image of {shape[2]} x '
                    f'{shape[3]} pixels'):
        return function(subject.build(), torch.randn(shape))


def _build_on_meta(subject: Subject) -> nn.Module:
    try:
        with torch.device('meta'):
            return subject.build()
    except (NotImplementedError, RuntimeError):  # looks at values while building
        return subject.build().to('meta')


# ------------------------------------------------------------------ ways to run


def _call(model: nn.Module, x: Tensor) -> Any:
    return model(x)


def _classify(model: nn.Module, x: Tensor) -> Any:
    return model(x, mode='tensor')


def _detect(model: nn.Module, x: Tensor) -> Any:
    """Detector, with a fixed number of regions in the second stage if it has one."""
    from mmdet.models import CascadeRoIHead, StandardRoIHead
    from mmdet.structures import DetDataSample
    heads = (CascadeRoIHead, StandardRoIHead)
    if type(getattr(model, 'roi_head', None)) in heads:
        return _detect_in_regions(model, x)
    return model(x, [DetDataSample(metainfo=_meta(x))], mode='tensor')


def _detect_in_regions(model: nn.Module, x: Tensor) -> None:
    """Heads on as many regions as inference keeps at most.

    How many there are, and of which level of the pyramid, depends on the image; what
    a head does with each does not. Their sampling has no matrix products.
    """
    roi_head, test_cfg = model.roi_head, model.test_cfg
    features = model.extract_feat(x)
    if model.with_rpn:
        model.rpn_head(features)
    parts = [('bbox', test_cfg.get('rpn', {}).get('max_per_img', NUM_PROPOSALS))]
    if roi_head.with_mask:
        parts.append(('mask', test_cfg.rcnn.get('max_per_img', NUM_DETECTIONS)))
    for part, number in parts:
        extractor = getattr(roi_head, f'{part}_roi_extractor')
        head = getattr(roi_head, f'{part}_head')
        extractors = extractor if isinstance(extractor, nn.ModuleList) else [extractor]
        heads = head if isinstance(head, nn.ModuleList) else [head]
        for extractor, head in zip(extractors, heads):
            size = extractor.roi_layers[0].output_size
            regions = x.new_empty(number, extractor.out_channels, *size)
            if roi_head.with_shared_head:
                regions = roi_head.shared_head(regions)
            head(regions)


def _segment(model: nn.Module, x: Tensor) -> Any:
    from mmseg.structures import SegDataSample
    return model(x, [SegDataSample(metainfo=_meta(x))], mode='tensor')


def _meta(x: Tensor) -> dict:
    shape = tuple(x.shape[2:])
    return dict(img_shape=shape, ori_shape=shape, pad_shape=shape,
                batch_input_shape=shape, scale_factor=(1., 1.))


_RUNS = dict(mmpretrain=_classify, mmdet=_detect, mmseg=_segment)
