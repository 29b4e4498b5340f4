"""Test-time augmentation, as the hosts' own ``test.py --tta``."""
import copy

from mmengine.config import Config
from mmengine.registry import DefaultScope

from ..errors import InputError
from .model_checks import build_on_meta
from .traversal import split_datasets, type_name

# What the hosts use where a config says nothing
TTA_MODELS: dict[str, dict] = dict(
    mmpretrain=dict(type='AverageClsScoreTTA'),
    mmdet=dict(type='DetTTAModel', tta_cfg=dict(
        nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    mmseg=dict(type='SegTTAModel'))
FLIP_KEYS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip',
             'flip_direction')


def use_tta(cfg: Config) -> None:
    """Average the predictions for several versions of every test image.

    Args:
        cfg (Config): Changed in place: the model is wrapped in ``tta_model``, and test
            images go through ``tta_pipeline``. Where the config has none, the hosts'
            model merges predictions for the image and its mirror image.

    Raises:
        InputError: If the task has no such model.
    """
    if 'tta_model' not in cfg and cfg.default_scope not in TTA_MODELS:
        raise InputError('--tta needs tta_model, which the config does not set.')
    wrapper = cfg.get('tta_model') or TTA_MODELS[cfg.default_scope]
    for dataset in split_datasets(cfg, 'test'):
        dataset['pipeline'] = copy.deepcopy(
            cfg.get('tta_pipeline') or _with_flips(dataset['pipeline']))
    cfg.model = {**wrapper, 'module': cfg.model}


def _with_flips(pipeline: list[dict]) -> list[dict]:
    """A test pipeline whose images are packed as they are and mirrored."""
    *steps, pack = pipeline
    if type_name(pack) == 'PackDetInputs':
        pack = {**pack, 'meta_keys': FLIP_KEYS}
    flips = [dict(type='RandomFlip', prob=prob) for prob in (0., 1.)]
    return [*steps, dict(type='TestTimeAug', transforms=[flips, [pack]])]


def check_tta(cfg: Config) -> None:
    """Check that the predictions of a model can be merged.

    Args:
        cfg (Config): Config of a run, after :func:`use_tta`.

    Raises:
        InputError: If the model predicts masks of instances, which MMDetection does
            not merge.
    """
    if type_name(cfg.model) != 'DetTTAModel':
        return
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        masks = getattr(build_on_meta(cfg.model['module']), 'with_mask', False)
    if masks:
        raise InputError(
            '--tta: MMDetection merges boxes only, and this model predicts masks. '
            'Leave --tta out, or use a detector without masks, such as a RetinaNet.')
