"""Cut any config down to the miniature data sets and two CPU cores.

:func:`apply_mini` changes data, image size, batch and schedule; model, losses
and evaluation stay those of the config. So do the augmentations, except that those
of classification, made for hundreds of passes over a million pictures, are weaker.
"""
from pathlib import Path

from ..datasets.mini import CLASSES, MINI_ROOT, PALETTE
from .classes import set_num_classes
from .data_checks import leaf_datasets

MINI_DATA = dict(mmpretrain='imagenet', mmdet='coco', mmseg='ade')

# size: shorter side of a test image in pixels; length of the training in
# passes over the training set; batch size; learning rate for AdamW at it.
RECIPES = dict(
    mmpretrain=dict(size=64, passes=20, batch=8, lr=4e-4),
    mmdet=dict(size=128, passes=5, batch=4, lr=4e-4),
    mmseg=dict(size=96, passes=4, batch=4, lr=4e-4))
NUM_TRAIN = 200
WARMUP = 0.1  # of the iterations
MAX_PROPOSALS = 200  # that the RPN hands on, per image
MAX_RPN_SAMPLES, MAX_ROI_SAMPLES = 128, 40  # per image
MAX_DETECTIONS = 20  # per image; the pictures hold five objects at most

# What is too strong for a few passes is weakened, so that it still takes part; and
# crops of a tenth of a picture miss the object.
WEAK_AUGMENTATION = dict(
    RandAugment=dict(num_policies=1, magnitude_level=2),
    RandomErasing=dict(erase_prob=0.1, max_area_ratio=0.1))
MIXING_ALPHA = 0.1  # pictures are mixed rarely, or hardly
CROP_RANGE = (0.5, 1.0)  # share of the picture
ACCUMULATION = 2  # iterations per update at most
BN_IMAGES, BN_BATCH = 64, 16  # to estimate statistics from

# Keys of transforms and preprocessors that hold sizes in pixels.
_SIZE_KEYS = ('scale', 'scales', 'size', 'crop_size', 'img_scale', 'stride',
              'pad_size', 'resolution', 'resolutions')


def apply_mini(cfg, root=MINI_ROOT):
    """Change a config in place to train in minutes on generated data.

    Args:
        cfg (Config): Config of one of the three tasks, in OpenMMLab's shape.
        root (str): Parent folder of the data sets. Defaults to
            ``'data/mini'``.

    Returns:
        Config: The same config.
    """
    scope = cfg.default_scope
    recipe = RECIPES[scope]
    _use_data(cfg, MINI_DATA[scope], Path(root).as_posix())
    set_num_classes(cfg, len(CLASSES[MINI_DATA[scope]]))
    _shrink_images(cfg, recipe['size'])
    _shrink_sampling(cfg.model)
    if scope == 'mmpretrain':
        _soften_augmentation(cfg)
    _shrink_schedule(cfg, recipe)
    return cfg


def _walk(node):
    """Every dict inside nested dicts, lists and tuples, outermost first."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _walk(item)


# --- data ---------------------------------------------------------------------


def _dataset_fields(name, part):
    """Where a data set type finds each part of a miniature data set."""
    if name == 'coco':
        return dict(
            type='CocoDataset',
            ann_file=f'annotations/instances_{part}2017.json',
            data_prefix=dict(img=f'{part}2017/'))
    if name == 'ade':
        folder = dict(train='training', val='validation')[part]
        # ADE20KDataset accepts no class names but its own 150.
        return dict(
            type='BaseSegDataset', img_suffix='.jpg', seg_map_suffix='.png',
            reduce_zero_label=True,
            data_prefix=dict(img_path=f'images/{folder}',
                             seg_map_path=f'annotations/{folder}'))
    return dict(type='ImageNet', data_prefix=part, ann_file='')


def _use_data(cfg, name, root):
    metainfo = dict(classes=CLASSES[name])
    if name in PALETTE:
        metainfo['palette'] = PALETTE[name]
    folder = f'{root}/{name}'
    recipe = RECIPES[cfg.default_scope]
    for part in ('train', 'val', 'test'):
        loader = cfg.get(f'{part}_dataloader')
        if loader is None:
            continue
        split = 'train' if part == 'train' else 'val'
        for dataset in leaf_datasets(loader.dataset):
            dataset.pop('split', None)
            dataset.update(
                _dataset_fields(name, split), data_root=folder,
                metainfo=metainfo)
        # The pictures are small: loading them in the main process is quicker
        # than sharing two cores with workers.
        loader.update(
            num_workers=0, persistent_workers=False, pin_memory=False)
        loader.pop('prefetch_factor', None)
        if 'batch_size' in loader and (part == 'train' or name == 'imagenet'):
            loader.batch_size = recipe['batch']
    for part in ('val', 'test'):
        for metric in _walk(cfg.get(f'{part}_evaluator')):
            if 'ann_file' in metric:
                metric.ann_file = f'{folder}/annotations/instances_val2017.json'
            if metric.get('type') == 'Accuracy':  # five classes: no top-5
                metric.topk = (1, )


# --- image size ---------------------------------------------------------------


def _numbers(value):
    if isinstance(value, (list, tuple)):
        return [n for item in value for n in _numbers(item)]
    return [value] if isinstance(value, int) and value > 1 else []


def _scaled(value, factor):
    if isinstance(value, (list, tuple)):
        return type(value)(_scaled(item, factor) for item in value)
    if isinstance(value, int) and value > 1:
        return max(1, round(value * factor))
    return value


def _test_size(pipeline):
    """Shorter side in pixels of what a test pipeline hands on."""
    sizes = [
        min(_numbers(node[key])) for node in _walk(pipeline)
        for key in ('crop_size', 'scale') if key in node and _numbers(node[key])
    ]
    return min(sizes) if sizes else None


def _shrink_images(cfg, size):
    loaders = [cfg.get(f'{part}_dataloader') for part in ('train', 'val', 'test')]
    pipelines = [
        dataset.pipeline for loader in loaders if loader
        for dataset in [*leaf_datasets(loader.dataset), loader.dataset]
        if 'pipeline' in dataset
    ]
    before = _test_size(pipelines[-1])
    if before is None or before <= size:
        return
    nodes = [node for pipeline in pipelines for node in _walk(pipeline)]
    nodes += list(_walk(cfg.model.get('data_preprocessor')))
    nodes += [cfg.model.get('test_cfg') or {},
              cfg.train_dataloader.get('batch_sampler') or {},
              *(cfg.get('custom_hooks') or [])]
    seen = set()  # pipelines are often shared between loaders
    for node in nodes:
        if id(node) in seen:
            continue
        seen.add(id(node))
        for key in _SIZE_KEYS:
            if key in node:
                node[key] = _scaled(node[key], size / before)


def _shrink_sampling(model):
    """Fewer proposals, samples and detections."""
    for node in _walk(model):
        if 'max_per_img' in node:
            most = MAX_DETECTIONS if 'score_thr' in node else MAX_PROPOSALS
            node['max_per_img'] = min(node['max_per_img'], most)
        if node.get('type') == 'RandomSampler':
            most = MAX_ROI_SAMPLES if node.get('add_gt_as_proposals') \
                else MAX_RPN_SAMPLES
            node['num'] = min(node['num'], most)


def _soften_augmentation(cfg):
    """Weaken mixing and strong augmentation, and forbid small crops."""
    for augment in (cfg.model.get('train_cfg') or {}).get('augments', []):
        augment.alpha = min(augment.get('alpha', 1.), MIXING_ALPHA)
    for dataset in leaf_datasets(cfg.train_dataloader.dataset):
        for node in _walk(dataset.pipeline):
            kind = str(node.get('type'))
            node.update(WEAK_AUGMENTATION.get(kind, {}))
            if kind in ('RandomResizedCrop', 'BatchResizedCrop'):
                node['crop_ratio_range'] = CROP_RANGE


# --- schedule -----------------------------------------------------------------


def _shrink_schedule(cfg, recipe):
    passes, per_pass = recipe['passes'], NUM_TRAIN // recipe['batch']
    iters = passes * per_pass
    by_epoch = 'max_epochs' in cfg.train_cfg
    cfg.train_cfg.pop('dynamic_intervals', None)
    if by_epoch:
        cfg.train_cfg.update(max_epochs=passes, val_interval=(passes + 1) // 2)
    else:
        cfg.train_cfg.update(max_iters=iters, val_interval=iters // 2)
    cfg.param_scheduler = [
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0,
             end=int(iters * WARMUP)),
        dict(type='CosineAnnealingLR', T_max=iters - int(iters * WARMUP),
             eta_min=0, by_epoch=False, begin=int(iters * WARMUP), end=iters)
    ]
    optimizer = cfg.optim_wrapper.optimizer
    if optimizer.type.startswith('Adam'):
        optimizer.lr = recipe['lr']
    if 'accumulative_counts' in cfg.optim_wrapper:
        cfg.optim_wrapper.accumulative_counts = min(
            cfg.optim_wrapper.accumulative_counts, ACCUMULATION)
    cfg.auto_scale_lr = dict(enable=False, base_batch_size=recipe['batch'])
    _shrink_hooks(cfg, max(1, passes // 2) if by_epoch else iters // 2)


def _shrink_hooks(cfg, checkpoint_interval):
    # MMEngine's default hooks where the config names none
    changes = dict(
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
        if hook['type'] == 'EMAHook':  # average over the last iterations
            hook.update(momentum=0.02)
            if 'warmup' in hook:
                hook.update(warmup=20)
        if hook['type'] == 'PreciseBNEvalHook':
            hook.update(num_samples=BN_IMAGES, batch_size=BN_BATCH,
                        interval=checkpoint_interval)
    cfg.custom_hooks = custom_hooks + [dict(type='MiniReportHook')]
    if 'log_processor' in cfg:
        cfg.log_processor.window_size = 10
    # Every run on the same data gives the same numbers.
    cfg.randomness = {'seed': 0, **(cfg.get('randomness') or {})}
