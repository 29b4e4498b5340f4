"""Cut any config down to a miniature data set and two CPU cores.

:func:`apply_mini` changes data, image size, batch size and schedule, and starts from
scratch; model, losses and metrics are unchanged. So are the augmentations, except for
classification, where they are weakened: the published ones suit hundreds of epochs on a
million images.
"""
from pathlib import Path
from typing import Any

from mmengine.config import Config

from ..datasets.mini import CLASSES, MINI_ROOT, PALETTE, generate_dataset
from ..errors import InputError
from .classes import set_num_classes
from .settings import start_from_scratch
from .traversal import (
    SPLITS,
    leaf_datasets,
    nested_dicts,
    split_datasets,
    type_name,
)

MINI_DATA = dict(mmpretrain='imagenet', mmdet='coco', mmseg='ade')

# size: shorter side of test images in pixels; epochs: length of the training; batch:
# batch size; lr: learning rate for AdamW at that batch size
RECIPES: dict[str, dict[str, Any]] = dict(
    mmpretrain=dict(size=64, epochs=20, batch=8, lr=4e-4),
    mmdet=dict(size=128, epochs=5, batch=4, lr=4e-4),
    mmseg=dict(size=96, epochs=4, batch=4, lr=4e-4))
NUM_TRAIN = 200
WARMUP = 0.1  # fraction of the iterations
MAX_PROPOSALS = 200  # RPN proposals per image
MAX_RPN_SAMPLES, MAX_ROI_SAMPLES = 128, 40  # per image
MAX_DETECTIONS = 20  # per image; no image has more than five objects

# Augmentation that is too strong for a few epochs is weakened, not dropped.
WEAK_AUGMENTATION: dict[str, dict[str, Any]] = dict(
    RandAugment=dict(num_policies=1, magnitude_level=2),
    RandomErasing=dict(erase_prob=0.1, max_area_ratio=0.1))
MIXING_ALPHA = 0.1  # Mixup and CutMix: most mixed images are close to one of the two
CROP_RANGE = (0.5, 1.0)  # relative area; crops of a tenth would miss the object
ACCUMULATION = 2  # maximum number of iterations per update
BN_IMAGES, BN_BATCH = 64, 16  # for estimating batch-norm statistics

# Keys of transforms and preprocessors that hold sizes in pixels
_SIZE_KEYS = ('scale', 'scales', 'size', 'crop_size', 'img_scale', 'stride',
              'pad_size', 'resolution', 'resolutions')


def apply_mini(cfg: Config, root: str | Path = MINI_ROOT) -> Config:
    """Change a config to train on generated data in minutes.

    Args:
        cfg (Config): Config of one of the three tasks, changed in place.
        root (str | Path): Parent folder of the data sets. Defaults to
            'data/mini'.

    Returns:
        Config: The same config.

    Raises:
        InputError: If there is no miniature data set for the task.
    """
    scope = cfg.default_scope
    if scope not in RECIPES:
        raise InputError(f'--mini has data for {list(RECIPES)}, not for {scope}.')
    recipe = RECIPES[scope]
    _use_data(cfg, MINI_DATA[scope], Path(root).as_posix())
    set_num_classes(cfg, len(CLASSES[MINI_DATA[scope]]))
    start_from_scratch(cfg)
    _shrink_images(cfg, recipe['size'])
    _shrink_sampling(cfg.model)
    if scope == 'mmpretrain':
        _soften_augmentation(cfg)
    _shrink_schedule(cfg, recipe)
    return cfg


def generate_mini_data(scope: str) -> None:
    """Generate the miniature data set of a task, unless it is there already.

    Args:
        scope (str): 'mmpretrain', 'mmdet' or 'mmseg'.

    Raises:
        InputError: If it cannot be written to ``data/mini``.
    """
    try:
        generate_dataset(MINI_DATA[scope])
    except OSError as error:
        raise InputError(str(error)) from None


# --- data ---------------------------------------------------------------------


def _dataset_fields(name: str, split: str) -> dict:
    """Data set type, and where it finds a split of a miniature data set."""
    if name == 'coco':
        return dict(
            type='CocoDataset',
            ann_file=f'annotations/instances_{split}2017.json',
            data_prefix=dict(img=f'{split}2017/'))
    if name == 'ade':
        folder = dict(train='training', val='validation')[split]
        # ADE20KDataset accepts no class names except its own 150
        return dict(
            type='BaseSegDataset', img_suffix='.jpg', seg_map_suffix='.png',
            reduce_zero_label=True,
            data_prefix=dict(img_path=f'images/{folder}',
                             seg_map_path=f'annotations/{folder}'))
    return dict(type='ImageNet', data_prefix=split, ann_file='')


def _use_data(cfg: Config, name: str, root: str) -> None:
    metainfo: dict[str, Any] = dict(classes=CLASSES[name])
    if name in PALETTE:
        metainfo['palette'] = PALETTE[name]
    folder = f'{root}/{name}'
    recipe = RECIPES[cfg.default_scope]
    for split in SPLITS:
        loader = cfg.get(f'{split}_dataloader')
        if loader is None:
            continue
        for dataset in split_datasets(cfg, split):
            dataset.pop('split', None)
            dataset.update(
                _dataset_fields(name, 'train' if split == 'train' else 'val'),
                data_root=folder, metainfo=metainfo)
        # The images are small: loading them in the main process is faster than
        # sharing two cores with workers
        loader.update(
            num_workers=0, persistent_workers=False, pin_memory=False)
        loader.pop('prefetch_factor', None)
        if 'batch_size' in loader and (split == 'train' or name == 'imagenet'):
            loader.batch_size = recipe['batch']
    for split in ('val', 'test'):
        for metric in nested_dicts(cfg.get(f'{split}_evaluator')):
            if 'ann_file' in metric:
                metric['ann_file'] = f'{folder}/annotations/instances_val2017.json'
            if type_name(metric) == 'Accuracy':  # five classes: no top-5
                metric['topk'] = (1, )


# --- image size ---------------------------------------------------------------


def _numbers(value: Any) -> list[int]:
    if isinstance(value, (list, tuple)):
        return [n for item in value for n in _numbers(item)]
    return [value] if isinstance(value, int) and value > 1 else []


def _scaled(value: Any, factor: float) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(item, factor) for item in value)
    if isinstance(value, int) and value > 1:
        return max(1, round(value * factor))
    return value


def _test_size(pipeline: list[dict]) -> int | None:
    """Shorter side in pixels of the images of a test pipeline."""
    sizes = [
        min(_numbers(node[key])) for node in nested_dicts(pipeline)
        for key in ('crop_size', 'scale') if key in node and _numbers(node[key])
    ]
    return min(sizes) if sizes else None


def _shrink_images(cfg: Config, size: int) -> None:
    loaders = [cfg.get(f'{split}_dataloader') for split in SPLITS]
    pipelines = [
        dataset.pipeline for loader in loaders if loader
        for dataset in [*leaf_datasets(loader.dataset), loader.dataset]
        if 'pipeline' in dataset
    ]
    before = _test_size(pipelines[-1])
    if before is None or before <= size:
        return
    nodes = [node for pipeline in pipelines for node in nested_dicts(pipeline)]
    nodes += nested_dicts([cfg.model.get('data_preprocessor'), cfg.get('tta_pipeline')])
    nodes += [cfg.model.get('test_cfg') or {},
              cfg.train_dataloader.get('batch_sampler') or {},
              *(cfg.get('custom_hooks') or [])]
    seen: set[int] = set()  # pipelines are often shared between loaders
    for node in nodes:
        if id(node) in seen:
            continue
        seen.add(id(node))
        for key in _SIZE_KEYS:
            if key in node:
                node[key] = _scaled(node[key], size / before)


def _shrink_sampling(model: dict) -> None:
    """Use fewer proposals, samples and detections."""
    for node in nested_dicts(model):
        if 'max_per_img' in node:
            most = MAX_DETECTIONS if 'score_thr' in node else MAX_PROPOSALS
            node['max_per_img'] = min(node['max_per_img'], most)
        if type_name(node) == 'RandomSampler':
            most = MAX_ROI_SAMPLES if node.get('add_gt_as_proposals') \
                else MAX_RPN_SAMPLES
            node['num'] = min(node['num'], most)


def _soften_augmentation(cfg: Config) -> None:
    """Weaken mixing and strong augmentation, and avoid small crops."""
    for augment in (cfg.model.get('train_cfg') or {}).get('augments', []):
        augment.alpha = min(augment.get('alpha', 1.), MIXING_ALPHA)
    for dataset in split_datasets(cfg, 'train'):
        for node in nested_dicts(dataset['pipeline']):
            kind = type_name(node)
            node.update(WEAK_AUGMENTATION.get(kind, {}))
            if kind in ('RandomResizedCrop', 'BatchResizedCrop'):
                node['crop_ratio_range'] = CROP_RANGE


# --- schedule -----------------------------------------------------------------


def _shrink_schedule(cfg: Config, recipe: dict[str, Any]) -> None:
    epochs, per_epoch = recipe['epochs'], NUM_TRAIN // recipe['batch']
    iters = epochs * per_epoch
    by_epoch = 'max_epochs' in cfg.train_cfg
    cfg.train_cfg.pop('dynamic_intervals', None)
    if by_epoch:
        cfg.train_cfg.update(max_epochs=epochs, val_interval=(epochs + 1) // 2)
    else:
        cfg.train_cfg.update(max_iters=iters, val_interval=iters // 2)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0,
             end=int(iters * WARMUP)),
        dict(type='CosineAnnealingLR', T_max=iters - int(iters * WARMUP),
             eta_min=0, by_epoch=False, begin=int(iters * WARMUP), end=iters)
    ]
    optimizer = cfg.optim_wrapper.optimizer
    if type_name(optimizer).startswith('Adam'):
        optimizer.lr = recipe['lr']
    if 'accumulative_counts' in cfg.optim_wrapper:
        cfg.optim_wrapper.accumulative_counts = min(
            cfg.optim_wrapper.accumulative_counts, ACCUMULATION)
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=recipe['batch'])
    _shrink_hooks(cfg, max(1, epochs // 2) if by_epoch else iters // 2)


def _shrink_hooks(cfg: Config, checkpoint_interval: int) -> None:
    # With the types of MMEngine's default hooks, in case the config names none
    changes: dict[str, dict] = dict(
        logger=dict(type='LoggerHook', interval=10),
        checkpoint=dict(
            type='CheckpointHook', interval=checkpoint_interval,
            max_keep_ckpts=1, save_best=None))
    hooks = cfg.get('default_hooks') or {}
    cfg.default_hooks = {
        **hooks,
        **{key: {**(hooks.get(key) or {}), **change}
           for key, change in changes.items()}
    }
    custom_hooks = list(cfg.get('custom_hooks') or [])
    for hook in custom_hooks:
        if type_name(hook) == 'EMAHook':  # average the last iterations
            hook.update(momentum=0.02)
            if 'warmup' in hook:
                hook.update(warmup=20)
        if type_name(hook) == 'PreciseBNEvalHook':
            hook.update(num_samples=BN_IMAGES, batch_size=BN_BATCH,
                        interval=checkpoint_interval)
    cfg.custom_hooks = custom_hooks + [dict(type='MiniReportHook')]
    if 'log_processor' in cfg:
        cfg.log_processor.window_size = 10
    # Runs are repeatable
    cfg.randomness = {'seed': 0, **(cfg.get('randomness') or {})}
