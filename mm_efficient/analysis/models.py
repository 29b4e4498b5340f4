"""Find a model by name or config, and count it."""
import copy
import difflib
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

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
from ..weights import FAMILIES
from .complexity import Complexity, Run, call_model, count
from .functions import build_from, import_source

# Height and width of test images on ImageNet, COCO and ADE20K, as published
INPUT_SHAPES = dict(mmpretrain=(224, 224), mmdet=(800, 1344), mmseg=(512, 512))
NUM_PROPOSALS = 1000  # RoIs of the box head, unless the config sets them
NUM_DETECTIONS = 100  # RoIs of the mask head, unless the config sets them
T = TypeVar('T')
# The models of the benchmark of LowFormer's authors that timm has, by its names. They
# also timed EfficientMod, MobileViG, Inception Transformer, FFNet, EdgeViT and FAT,
# which no package has.
RIVALS = ('resnet50', 'mobilenetv3_large_100', 'pvt_v2_b0', 'coatnet_0_rw_224',
          'ghostnetv2_100', 'efficientformerv2_s1', 'efficientvit_m5', 'fastvit_t8',
          'mobileone_s1', 'repvit_m2_3', 'shvit_s4')


class ModelSpec(NamedTuple):
    """A model and how to run it.

    Args:
        name (str): The name it was requested by.
        build (Callable): Builds the model with random weights.
        run (Callable): Calls a model with (B, 3, H, W) images as inference does,
            without the steps that depend on pixel values.
        shape (tuple[int, int]): Default height and width of its input.
    """

    name: str
    build: Callable[[], nn.Module]
    run: Run
    shape: tuple[int, int]


def find_model(name: str, options: dict | None = None) -> ModelSpec:
    """Find a model by name.

    Args:
        name (str): One of

            - a classification, detection or segmentation config file;
            - the name of a config of this package (``soft_small_maskrcnn_1x``), or a
              variant for its classifier (``soft_small``);
            - a model in MMPretrain's index (``swin-tiny_16xb64_in1k``);
            - a timm model (``resnet50``, or ``timm/resnet50`` if MMPretrain has a
              model of that name);
            - ``FILE.py:FUNCTION`` or ``PACKAGE.MODULE:FUNCTION``, which returns a
              model of (B, 3, H, W) images.
        options (dict, optional): Config overrides by dotted key. Defaults to None.

    Returns:
        ModelSpec: The model.

    Raises:
        InputError: If there is no such model, or its config is invalid.
    """
    if ':' in name and '::' not in name:
        _refuse_options(name, options)
        import_source(name.rpartition(':')[0])
        return ModelSpec(name, partial(build_from, name), call_model,
                         INPUT_SHAPES['mmpretrain'])
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
        _refuse_options(name, options)
        return ModelSpec(name, lambda: timm.create_model(model_name), call_model,
                         INPUT_SHAPES['mmpretrain'])
    raise InputError(_unknown(name))


def _refuse_options(name: str, options: dict | None) -> None:
    if options:
        raise InputError(f'{name} has no config to override; leave --cfg-options out.')


def expand_groups(names: Iterable[str]) -> list[str]:
    """Replace names of groups by the models in them.

    Args:
        names (Iterable[str]): Of models, of groups (``rivals``: what LowFormer's
            authors benchmark, as far as timm has it), or of families (``lowformer``:
            its variants).

    Returns:
        list[str]: Of models, each once.
    """
    groups = {family.name.lower(): [*family.variants] for family in FAMILIES}
    groups['rivals'] = [f'timm/{name}' for name in RIVALS]
    return [*dict.fromkeys(
        model for name in names for model in groups.get(name.lower(), [name]))]


def _variant(path: Path) -> str | None:
    """The variant whose classifier a config, <variant>_<schedule>.py, trains."""
    return path.stem.rpartition('_')[0] if path.parent.name == 'cls' else None


def _unknown(name: str) -> str:
    names = {*mmpretrain.list_models(), *timm.list_models()}
    for path in config_files():
        names |= {path.stem, _variant(path) or path.stem}
    close = difflib.get_close_matches(name, sorted(names), 5)
    return (f'there is no model {name!r}: expected a config file, a variant or config '
            'of mm_efficient, a model of MMPretrain or timm, or FILE.py:FUNCTION'
            + (f'; similar names: {", ".join(close)}' if close else ''))


def from_config(cfg: Config, name: str) -> ModelSpec:
    """Describe the model of a config.

    Args:
        cfg (Config): Config with ``default_scope`` and ``model``.
        name (str): Name to give it.

    Returns:
        ModelSpec: The model.
    """
    scope = cfg.default_scope

    def build() -> nn.Module:
        with DefaultScope.overwrite_default_scope(scope), warnings.catch_warnings():
            warnings.simplefilter('ignore', UserWarning)  # about losses, deprecation
            return MODELS.build(copy.deepcopy(cfg.model))
    return ModelSpec(name, build, _RUNS[scope], _input_shape(cfg))


def _input_shape(cfg: Config) -> tuple[int, int]:
    """Height and width of test images; of the center crop for classifiers."""
    if cfg.default_scope == 'mmpretrain':
        loader = cfg.get('test_dataloader') or {}
        for transform in loader.get('dataset', {}).get('pipeline', []):
            if transform['type'] == 'CenterCrop':
                return to_2tuple(transform['crop_size'])
    return INPUT_SHAPES[cfg.default_scope]


def complexity(spec: ModelSpec, shape: tuple[int, int] | None = None) -> Complexity:
    """Count parameters, multiply-adds and activations of a model for one image.

    Runs on the meta device if the model allows it, which takes seconds at any shape.

    Args:
        spec (ModelSpec): The model.
        shape (tuple[int, int], optional): Height and width of the image.
            Defaults to None, ``spec.shape``.

    Returns:
        Complexity: The counts.

    Raises:
        ExecutionError: If the model cannot be built or run.
    """
    return run_without_data(spec, shape, lambda model, x: count(model, x, spec.run))


def run_without_data(spec: ModelSpec, shape: tuple[int, int] | None,
                     function: Callable[[nn.Module, Tensor], T]) -> T:
    """Call ``function(model, image)`` on the meta device, or on the CPU if that fails.

    Args:
        spec (ModelSpec): The model.
        shape (tuple[int, int], optional): Height and width. None: ``spec.shape``.
        function (Callable): What to call.

    Returns:
        T: The result of ``function``.

    Raises:
        ExecutionError: If the model cannot be built or run.
    """
    height, width = shape or spec.shape
    try:
        x = torch.empty(1, 3, height, width, device='meta')
        return function(_build_on_meta(spec), x)
    except Exception as error:  # data-dependent code fails in many ways
        reason = str(error).strip().partition('\n')[0]
    print_log(f'{spec.name} cannot run on the meta device ({reason}); running it on '
              'the CPU with random weights, which takes longer', logger='current')
    torch.manual_seed(0)
    with explain(f'{spec.name} cannot be run on an image of {height} x {width} pixels'):
        return function(spec.build(), torch.randn(1, 3, height, width))


def _build_on_meta(spec: ModelSpec) -> nn.Module:
    try:
        with torch.device('meta'):
            return spec.build()
    except (NotImplementedError, RuntimeError):  # its __init__ reads tensor values
        return spec.build().to('meta')


# ------------------------------------------------------------- forward, by package


def _classify(model: nn.Module, x: Tensor) -> Any:
    return model(x, mode='tensor')


def _detect(model: nn.Module, x: Tensor) -> Any:
    """Run a detector, with a fixed number of RoIs if it has two stages."""
    from mmdet.models import CascadeRoIHead, StandardRoIHead
    from mmdet.structures import DetDataSample
    if type(getattr(model, 'roi_head', None)) in (CascadeRoIHead, StandardRoIHead):
        return _detect_rois(model, x)
    return model(x, [DetDataSample(metainfo=_metainfo(x))], mode='tensor')


def _detect_rois(model: Any, x: Tensor) -> None:
    """Run the heads on as many RoIs as inference keeps at most.

    The number of RoIs, and the feature map each comes from, depend on the image; the
    cost per RoI does not. RoI sampling has no matmuls.
    """
    roi_head, test_cfg = model.roi_head, model.test_cfg
    features = model.extract_feat(x)
    if model.with_rpn:
        model.rpn_head(features)
    parts = [('bbox', test_cfg.get('rpn', {}).get('max_per_img', NUM_PROPOSALS))]
    if roi_head.with_mask:
        parts.append(('mask', test_cfg.rcnn.get('max_per_img', NUM_DETECTIONS)))
    for part, num_rois in parts:
        extractors = _as_list(getattr(roi_head, f'{part}_roi_extractor'))
        heads = _as_list(getattr(roi_head, f'{part}_head'))
        for extractor, head in zip(extractors, heads):
            size = extractor.roi_layers[0].output_size
            rois = x.new_empty(num_rois, extractor.out_channels, *size)
            if roi_head.with_shared_head:
                rois = roi_head.shared_head(rois)
            head(rois)


def _as_list(module: nn.Module) -> list[Any]:
    return [*module] if isinstance(module, nn.ModuleList) else [module]


def _segment(model: nn.Module, x: Tensor) -> Any:
    from mmseg.structures import SegDataSample
    return model(x, [SegDataSample(metainfo=_metainfo(x))], mode='tensor')


def _metainfo(x: Tensor) -> dict:
    shape = tuple(x.shape[2:])
    return dict(img_shape=shape, ori_shape=shape, pad_shape=shape,
                batch_input_shape=shape, scale_factor=(1., 1.))


_RUNS = dict(mmpretrain=_classify, mmdet=_detect, mmseg=_segment)
