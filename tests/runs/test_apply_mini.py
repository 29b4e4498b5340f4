import importlib
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

import mm_efficient.datasets as datasets
from mm_efficient.runs.mini import MINI_DATA, RECIPES, apply_mini

CONFIGS = Path(__file__).parents[2] / 'configs'
OURS = [
    'cls/soft_small_300e.py', 'det/soft_small_maskrcnn_1x.py',
    'det/soft_small_retinanet_1x.py', 'seg/soft_small_upernet_160k.py',
    'seg/soft_small_fpn_80k.py'
]
STOCK = [
    ('mmpretrain', 'resnet/resnet18_8xb32_in1k.py'),
    ('mmpretrain', 'swin_transformer/swin-tiny_16xb64_in1k.py'),
    ('mmdet', 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py'),
    ('mmdet', 'retinanet/retinanet_r50_fpn_ms-640-800-3x_coco.py'),
    ('mmseg', 'upernet/upernet_r50_4xb4-80k_ade20k-512x512.py'),
    ('mmseg', 'swin/swin-tiny-patch4-window7-in1k-pre_upernet_'
     '8xb2-160k_ade20k-512x512.py'),
]


def stock_path(package, name):
    module = pytest.importorskip(package)
    path = Path(module.__file__).parent / '.mim' / 'configs' / name
    if not path.exists():
        pytest.skip(f'{package} was installed without {name}')
    return path


def load(path):
    cfg = Config.fromfile(path)
    pytest.importorskip(cfg.default_scope)
    return cfg


def dicts(node):
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from dicts(item)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp('mini')
    for name in MINI_DATA.values():
        datasets.generate_dataset(name, folder, num_train=6, num_val=3)
    return folder


@pytest.mark.parametrize('source', OURS + STOCK, ids=lambda s: s[-1] if
                         isinstance(s, tuple) else s)
def test_any_config_reads_the_miniature_data(root, source):
    path = CONFIGS / source if isinstance(source, str) else stock_path(*source)
    cfg = apply_mini(load(path), root)
    scope, recipe = cfg.default_scope, RECIPES[cfg.default_scope]
    num_classes = len(datasets.CLASSES[MINI_DATA[scope]])
    assert {d['num_classes'] for d in dicts(cfg.model)
            if 'num_classes' in d} == {num_classes}
    importlib.import_module(f'{scope}.datasets')
    init_default_scope(scope)
    for part, count in (('train', 6), ('val', 3)):
        dataset = DATASETS.build(cfg[f'{part}_dataloader'].dataset)
        assert len(dataset.metainfo['classes']) == num_classes
        assert count - 1 <= len(dataset) <= count or 'Repeat' in str(
            type(dataset))
        height, width = dataset[0]['inputs'].shape[1:]
        assert max(height, width) <= 4 * recipe['size']
        if part == 'val':
            assert min(height, width) in (recipe['size'],
                                          -(-recipe['size'] // 32) * 32)


@pytest.mark.parametrize('name', OURS)
def test_the_schedule_is_short_and_whole(name):
    cfg = apply_mini(load(CONFIGS / name))
    recipe = RECIPES[cfg.default_scope]
    iters = recipe['epochs'] * (200 // recipe['batch'])
    by_epoch = 'max_epochs' in cfg.train_cfg
    assert (cfg.train_cfg.max_epochs * (200 // recipe['batch'])
            if by_epoch else cfg.train_cfg.max_iters) == iters
    # warm-up and decay follow each other and end with the training
    warmup, decay = cfg.param_scheduler
    assert (warmup.begin, warmup.end, decay.end) == (0, decay.begin, iters)
    assert decay.T_max == decay.end - decay.begin
    total = cfg.train_cfg.get('max_epochs', iters)
    assert total / 2 <= cfg.train_cfg.val_interval < total
    assert cfg.default_hooks.checkpoint.interval <= total / 2


@pytest.mark.parametrize('name', OURS)
def test_the_model_stays_itself(name):
    before, after = (load(CONFIGS / name) for _ in range(2))
    apply_mini(after)
    before.model.backbone.pop('init_cfg', None)  # from scratch
    assert after.model.backbone == before.model.backbone
    assert after.model.get('neck') == before.model.get('neck')
    assert after.model.type == before.model.type


def test_a_repeated_run_repeats_its_numbers():
    assert apply_mini(load(CONFIGS / OURS[0])).randomness.seed == 0
    cfg = load(CONFIGS / OURS[0])
    cfg.randomness = dict(seed=3)
    assert apply_mini(cfg).randomness.seed == 3


def test_what_a_recipe_has_takes_part_in_miniature():
    cfg = apply_mini(load(CONFIGS / 'cls/lowformer_b3_300e.py'))
    assert [augment.alpha for augment in cfg.model.train_cfg.augments] == [0.1, 0.1]
    kinds = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    assert {'BatchResolution', 'RandAugment', 'RandomErasing'} <= set(kinds)
    assert cfg.train_dataloader.batch_sampler.resolutions == [37, 46, 55, 64]
    hooks = {hook.type: hook for hook in cfg.custom_hooks}
    assert {'EMAHook', 'PreciseBNEvalHook', 'DropPathProgressHook',
            'MESAHook'} <= set(hooks)
    assert hooks['PreciseBNEvalHook'].resolution == 64
    assert hooks['EMAHook'].warmup < 100
    assert cfg.optim_wrapper.accumulative_counts == 2


def test_augmentations_are_weaker_in_miniature():
    cfg = load(CONFIGS / 'cls/swiftformer_l3_300e.py')
    steps = {step.type: step for step in
             apply_mini(cfg).train_dataloader.dataset.pipeline}
    assert steps['RandAugment'].magnitude_level == 2
    assert steps['RandomErasing'].erase_prob == 0.1
    assert steps['RandomResizedCrop'].crop_ratio_range == (0.5, 1.0)
