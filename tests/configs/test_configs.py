"""Every config: its name against its content, and the fit of its model's parts.

Of larger variants, which inherit the smallest, only the backbone is built.
"""
import inspect
import re

import pytest
import torch
from config_grid import (
    EVERY_LEAF,
    LEAVES,
    ON_DISK,
    VARIANTS,
    backbone_class,
    differing_keys,
    load,
    meta_backbone,
    meta_model,
    smallest,
)
from mmpretrain.registry import MODELS

from mm_efficient.models.base import PyramidBackbone

DETECTORS = dict(retinanet='RetinaNet', maskrcnn='MaskRCNN')
HEADS = dict(upernet='UPerHead', fpn='FPNHead')
# Strides of what the neck, or the backbone where there is none, hands on.
PYRAMIDS = dict(
    retinanet=(8, 16, 32, 64, 128),
    maskrcnn=(4, 8, 16, 32, 64),
    upernet=(4, 8, 16, 32),
    fpn=(4, 8, 16, 32))


def test_every_backbone_belongs_to_a_family():
    backbones = {
        name for name, cls in MODELS.module_dict.items()
        if isinstance(cls, type) and issubclass(cls, PyramidBackbone)
    }
    assert backbones == {backbone['type'] for backbone in VARIANTS.values()}


def test_every_arch_has_a_variant():
    for name in {backbone['type'] for backbone in VARIANTS.values()}:
        known = {backbone['arch'] for backbone in VARIANTS.values()
                 if backbone['type'] == name}
        # The arch of the published factory that fits no reported number
        assert set(backbone_class(name).ARCHS) - known <= {'small_d20'}


def test_grid_is_complete():
    assert all(LEAVES.values()), [name for name, leaf in LEAVES.items() if not leaf]
    for variant in VARIANTS:
        methods = sorted(f'{leaf.task} {leaf.method.partition("_")[0]}'
                         for leaf in LEAVES.values()
                         if leaf.variant == variant and not leaf.extra)
        assert [method for method in methods if not method.startswith('cls')] == [
            'det maskrcnn', 'det retinanet', 'seg fpn', 'seg upernet']
        assert len(methods) == 5


@EVERY_LEAF
def test_name_says_which_backbone(name):
    leaf, backbone = LEAVES[name], load(name).model.backbone
    prefix = '' if leaf.task == 'cls' else 'mmpretrain.'
    assert backbone.type == prefix + leaf.backbone['type']
    defaults = inspect.signature(
        backbone_class(leaf.backbone['type']).__init__).parameters
    for key, value in {'pretrain_size': None, 'normalized': False,
                       'attention': 'hash', 'output_norm': False,
                       **leaf.backbone}.items():
        if key in defaults:
            default = defaults[key].default
            assert backbone.get(key, default) == value, key
    if leaf.task != 'cls':
        # RetinaNet starts at stride 8: a family with a norm per feature map leaves
        # the first one out, where it would have no gradient.
        first = leaf.method == 'retinanet_1x' and bool(
            backbone_class(leaf.backbone['type']).DENSE_ONLY)
        assert backbone.out_indices == (0, 1, 2, 3)[first:]


@EVERY_LEAF
def test_name_says_which_method(name):
    leaf, config = LEAVES[name], load(name)
    method = leaf.method.rpartition('_')[0]
    dataset = config.train_dataloader.dataset.type
    if leaf.task == 'cls':
        assert config.default_scope == 'mmpretrain'
        assert config.model.type.endswith('Classifier')
        assert dataset == 'ImageNet'
    elif leaf.task == 'det':
        assert config.default_scope == 'mmdet'
        assert (config.model.type, dataset) == (DETECTORS[method], 'CocoDataset')
        metric = ['bbox', 'segm'] if method == 'maskrcnn' else 'bbox'
        assert config.val_evaluator.metric == metric
        assert config.test_evaluator.metric == metric
    else:
        assert config.default_scope == 'mmseg'
        assert (config.model.type, dataset) == ('EncoderDecoder', 'ADE20KDataset')
        assert config.model.decode_head.type == HEADS[method]


@EVERY_LEAF
def test_name_says_how_long(name):
    leaf, config = LEAVES[name], load(name)
    length, unit = re.fullmatch(r'(\d+)([exk])', leaf.method.split('_')[-1]).groups()
    if unit == 'k':
        assert config.train_cfg.max_iters == 1000 * int(length)
    else:
        # Epochs of warm-up before the whole cosine are not in the name
        epochs = 12 * int(length) if unit == 'x' else \
            int(length) + config.param_scheduler[0].get('cosine_begin', 0)
        assert config.train_cfg.max_epochs == epochs
    by_epoch = unit != 'k'
    assert config.log_processor.by_epoch is by_epoch
    assert config.default_hooks.checkpoint.get('by_epoch', True) is by_epoch


@EVERY_LEAF
def test_heads_fit_backbone(name):
    leaf, config = LEAVES[name], load(name).model
    backbone = meta_backbone(name)
    assert type(backbone) is backbone_class(leaf.backbone['type'])
    widths = backbone.feature_channels
    if leaf.task == 'cls':
        assert config.head.in_channels == widths[-1]
        return
    given = config.neck if 'neck' in config else config.decode_head
    assert tuple(given.in_channels) == tuple(widths[i] for i in backbone.out_indices)
    if 'auxiliary_head' in config:
        head = config.auxiliary_head
        assert head.in_channels == widths[head.in_index]


# What a larger variant of det and seg may set.
OF_VARIANTS = {
    'model.backbone.arch', 'model.backbone.normalized', 'model.backbone.drop_path_rate',
    'model.neck.in_channels', 'model.decode_head.in_channels',
    'model.auxiliary_head.in_channels', 'model.backbone.init_cfg.checkpoint'
}


@pytest.mark.parametrize('name', [n for n in ON_DISK if not n.startswith('cls')])
def test_variants_are_trained_as_the_smallest(name):
    assert differing_keys(load(name), load(smallest(name))) <= OF_VARIANTS


@pytest.mark.parametrize('name', sorted(set(map(smallest, ON_DISK))))
def test_parts_fit_each_other(name):
    leaf, config, model = LEAVES[name], load(name).model, meta_model(name)
    if leaf.task == 'cls':
        images = torch.empty(2, 3, 64, 64, device='meta')
        assert model(images, mode='tensor').shape == (2, 1000)
        return

    # What the backbone contract promises for an image of 128 x 256
    widths = model.backbone.feature_channels
    pyramid = tuple(
        torch.empty(2, widths[i], 32 // 2**i, 64 // 2**i, device='meta')
        for i in model.backbone.out_indices)
    if model.with_neck:
        pyramid = model.neck(pyramid)
    method = leaf.method.rpartition('_')[0]
    assert [(128 // out.shape[2], 256 // out.shape[3])
            for out in pyramid] == [(stride, stride) for stride in PYRAMIDS[method]]
    if method == 'retinanet':
        strides = config.bbox_head.anchor_generator.strides
        assert tuple(strides) == PYRAMIDS[method]
    elif method == 'maskrcnn':
        strides = config.rpn_head.anchor_generator.strides
        assert tuple(strides) == PYRAMIDS[method]
    else:
        logits = model.decode_head(pyramid)
        assert logits.shape == (2, 150, 32, 64)


@pytest.mark.parametrize('arch, retinanet, maskrcnn, upernet', [
    ('tiny', 23, 33, None),
    ('small', 34, 44, 54),
    ('medium', 55, 65, 76),
    ('large', 74, 84, None),
])
def test_soft_models_have_published_size(arch, retinanet, maskrcnn, upernet):
    for name, size in ((f'det/soft_{arch}_norm_retinanet_1x', retinanet),
                       (f'det/soft_{arch}_norm_maskrcnn_1x', maskrcnn),
                       (f'seg/soft_{arch}_norm_upernet_160k', upernet)):
        if size is not None:
            parameters = sum(p.numel() for p in meta_model(name).parameters())
            assert abs(parameters / 1e6 - size) < 1


@pytest.mark.parametrize('name', [n for n in ON_DISK if not n.startswith('cls')])
def test_classifier_weights_fit(name):
    leaf = LEAVES[name]
    classifier = next(n for n, other in LEAVES.items()
                      if (other.variant, other.extra, other.task) == (
                          leaf.variant, '', 'cls'))
    given = {key: tensor.shape
             for key, tensor in meta_backbone(classifier).state_dict().items()}
    shapes = {key: tensor.shape
              for key, tensor in meta_backbone(name).state_dict().items()}
    patterns = backbone_class(leaf.backbone['type']).DENSE_ONLY
    dense_only = {key for key in shapes
                  if any(re.fullmatch(pattern, key) for pattern in patterns)}
    assert bool(dense_only) == bool(patterns)
    given.update((key, shapes[key]) for key in dense_only)
    assert given == shapes
