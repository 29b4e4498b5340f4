"""Swapping the backbone of stock configs."""
import functools
import re
import runpy
from importlib import import_module
from pathlib import Path

import pytest
from mmengine.config import Config

import mm_efficient
from mm_efficient.errors import ExecutionError, InputError
from mm_efficient.files import configs_folder
from mm_efficient.runs.configs import load_config, packaged_name
from mm_efficient.swap import missing_operators, plan_swap
from mm_efficient.swap.draft import Draft
from mm_efficient.swap.stock import Level, find_levels
from mm_efficient.swap.successors import fit_successors
from mm_efficient.swap.writing import change_table, config_text
from mm_efficient.swap.yolo import replace_yolo_groups
from mm_efficient.weights.family import FAMILIES

stock_config = functools.cache(load_config)  # not changed by a swap
RETINANET = 'mmdet::retinanet/retinanet_r50_fpn_1x_coco.py'
FCN = 'mmseg::fcn/fcn_r50-d8_4xb2-40k_cityscapes-512x1024.py'
RESNET = 'mmpretrain::resnet/resnet50_8xb32_in1k.py'
MEAN, STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]

pytestmark = [pytest.mark.filterwarnings('ignore')]
mmdet, mmseg = pytest.importorskip('mmdet'), pytest.importorskip('mmseg')


def without_scope(node):
    """A config without the marks that MMEngine gives to bases of other packages."""
    if isinstance(node, dict):
        return {key: without_scope(value) for key, value in node.items()
                if key != '_scope_'}
    if isinstance(node, (list, tuple)):
        return type(node)(without_scope(item) for item in node)
    return node


def published(variant):
    return dict(type='Pretrained', checkpoint=f'published://{variant}')


def test_the_written_config_is_short_and_says_the_same(tmp_path):
    out = tmp_path / 'my.py'
    cfg = mm_efficient.swap_backbone(RETINANET, 'soft_small_norm', out)
    assert cfg.model.backbone == dict(
        type='mmpretrain.SOFT', arch='small', normalized=True, out_indices=(1, 2, 3),
        pretrain_size=224, frozen_stages=1, norm_eval=True,
        init_cfg=published('soft_small_norm'))
    assert cfg.model.neck.in_channels == [128, 320, 512]
    assert cfg.model.neck.start_level == 0
    assert cfg.model.data_preprocessor.mean == MEAN
    assert cfg.optim_wrapper.optimizer == dict(type='AdamW', lr=1e-4, weight_decay=1e-4)
    text = out.read_text()
    page = Path(__file__).parents[1] / 'docs' / 'swap.md'
    assert not page.is_file() or text.partition('custom_imports')[2] in page.read_text()
    assert len(text.splitlines()) < 30 and max(map(len, text.splitlines())) <= 88
    if packaged_name(load_config(RETINANET).filename):
        assert f'_base_ = {RETINANET!r}' in text
    assert without_scope(Config.fromfile(out).to_dict()) == cfg.to_dict()


def test_a_config_in_memory_is_written_whole_unless_it_is_that_of_its_file(tmp_path):
    stock = load_config(RETINANET)
    assert plan_swap(stock, 'soft_tiny').base
    stock.model.bbox_head.num_classes = 3
    out = tmp_path / 'my.py'
    cfg = mm_efficient.swap_backbone(stock, 'soft_tiny', out)
    assert stock.model.backbone.type == 'ResNet'  # as before
    assert not re.search(r'^_base_ =', out.read_text(), re.M)
    assert Config.fromfile(out).to_dict() == cfg.to_dict()
    assert cfg.model.bbox_head.num_classes == 3


def test_a_path_is_written_from_the_folder_of_the_new_config(tmp_path):
    own = tmp_path / 'own.py'
    own.write_text(load_config(RETINANET).pretty_text)
    out = tmp_path / 'configs' / 'my.py'
    cfg = mm_efficient.swap_backbone(own, 'lowformer_b0', out)
    assert "_base_ = '../own.py'" in out.read_text()
    assert Config.fromfile(out).to_dict() == cfg.to_dict()


@pytest.mark.parametrize('variant, expected', [
    ('soft_tiny_norm', dict(pretrain_size=224, normalized=True)),
    ('swiftformer_xs', dict(output_norm=True)),
    ('ecoformer_pvt_b0', dict(hooks=True)),
    ('ecoformer_twins_s', dict(hooks=True)),
    ('lowformer_b0', dict(sync_bn='torch')),
    ('reduceformer_b1', dict(sync_bn='torch', pretrain_size=224)),
])
def test_what_a_family_needs(variant, expected):
    cfg = mm_efficient.swap_backbone(stock_config(FCN), variant)
    backbone = cfg.model.backbone
    for key in ('pretrain_size', 'normalized', 'output_norm'):
        assert backbone.get(key) == expected.get(key), key
    hooks = [hook['type'] for hook in cfg.get('custom_hooks') or ()]
    assert ('HashFittingHook' in hooks) == expected.get('hooks', False)
    assert cfg.get('sync_bn') == expected.get('sync_bn')
    (family,) = (f for f in FAMILIES if variant in f.variants)
    known = variant in family.downloads or variant in family.files
    assert ('init_cfg' in backbone) == known
    assert cfg.model.pretrained is None


def test_nothing_is_frozen_without_weights():
    stock = stock_config(RETINANET)
    assert stock.model.backbone.frozen_stages == 1
    backbone = mm_efficient.swap_backbone(stock, 'reduceformer_b1').model.backbone
    assert not {'init_cfg', 'frozen_stages', 'norm_eval'} & set(backbone)


def test_segmentation_heads_read_by_depth():
    swap = plan_swap(stock_config(FCN), 'lowformer_b0')
    model = swap.cfg.model
    assert model.backbone.out_indices == (2, 3)
    assert (model.decode_head.in_channels, model.decode_head.in_index) == (256, 1)
    assert (model.auxiliary_head.in_channels, model.auxiliary_head.in_index) == (128, 0)
    assert ('model.backbone', 'stride 8', 'stride 32') in [c[:3] for c in swap.changes]
    optimizer, (schedule,) = swap.cfg.optim_wrapper.optimizer, swap.cfg.param_scheduler
    assert optimizer == dict(type='AdamW', lr=6e-5, weight_decay=0.01)
    assert swap.cfg.optim_wrapper.paramwise_cfg.norm_decay_mult == 0
    # SGD's lowest learning rate, 1e-4, is above AdamW's highest
    assert schedule.eta_min == pytest.approx(1e-4 / 0.01 * 6e-5)


def test_classifiers_take_the_last_feature_map():
    cfg = mm_efficient.swap_backbone(stock_config(RESNET), 'swiftformer_xs')
    assert cfg.model.head.in_channels == 220 and 'init_cfg' not in cfg.model.backbone
    recipe = load_config('swiftformer_xs_300e.py')
    assert cfg.optim_wrapper.optimizer.lr == pytest.approx(
        recipe.optim_wrapper.optimizer.lr * 256 / recipe.auto_scale_lr.base_batch_size)
    vgg = mm_efficient.swap_backbone('mmpretrain::vgg/vgg11_8xb32_in1k.py', 'soft_tiny')
    assert vgg.model.head.type == 'LinearClsHead'
    assert vgg.model.head.num_classes == 1000
    assert vgg.model.neck.type == 'GlobalAveragePooling'


@pytest.mark.parametrize('name, mean, std', [
    ('retinanet/retinanet_r50-caffe_fpn_1x_coco', [103.53, 116.28, 123.675], [1] * 3),
    ('yolox/yolox_s_8xb8-300e_coco', None, None),
])
def test_images_are_normalised_as_the_weights_expect(name, mean, std):
    stock = load_config(f'mmdet::{name}.py').model.data_preprocessor
    assert (stock.get('mean'), stock.get('std')) == (mean, std)
    model = mm_efficient.swap_backbone(f'mmdet::{name}.py', 'lowformer_b0').model
    assert model.data_preprocessor.mean == MEAN and model.data_preprocessor.std == STD
    assert model.data_preprocessor.bgr_to_rgb


def test_the_optimizer_can_be_kept():
    stock = stock_config(FCN)
    kept = mm_efficient.swap_backbone(stock, 'soft_tiny', keep_optimizer=True)
    assert kept.optim_wrapper == stock.optim_wrapper
    assert kept.param_scheduler == stock.param_scheduler


def test_layer_decay_becomes_ours():
    name = 'mmdet::convnext/mask-rcnn_convnext-t-p4-w7_fpn_amp-ms-crop-3x_coco.py'
    wrapper = mm_efficient.swap_backbone(name, 'soft_tiny').optim_wrapper
    assert wrapper.constructor == 'LayerDecayOptimWrapperConstructor'
    assert wrapper.optimizer == load_config(name).optim_wrapper.optimizer
    # the first layer learns as before: 0.95 over 6 + 1 layers, here 8 + 1
    assert wrapper.paramwise_cfg == dict(layer_decay_rate=pytest.approx(
        load_config(name).optim_wrapper.paramwise_cfg.decay_rate**(7 / 9), abs=1e-3))


@pytest.mark.parametrize('name, reason', [
    ('mmdet::detectors/detectors_cascade-rcnn_r50_1x_coco.py', 'recursive pyramid'),
    ('mmdet::tridentnet/tridentnet_r50-caffe_1x_coco.py', 'three branches'),
    ('mmseg::ddrnet/ddrnet_23_in1k-pre_2xb6-120k_cityscapes-1024x1024.py', 'branches'),
    ('mmseg::pidnet/pidnet-s_2xb6-120k_1024x1024-cityscapes.py', 'branches'),
    ('mmseg::dpt/dpt_vit-b16_8xb2-160k_ade20k-512x512.py', 'tokens'),
    ('mmseg::san/san-vit-b16_coco-stuff164k-640x640.py', 'CLIP'),
    ('mmseg::mobilenet_v3/mobilenet-v3-d8_lraspp_4xb4-320k_cityscapes-512x1024.py',
     'windows'),
    ('mmpretrain::mae/mae_vit-base-p16_8xb512-amp-coslr-300e_in1k.py', 'classifier'),
    ('soft_tiny_retinanet_1x.py', 'already'),
])
def test_what_cannot_be_swapped_is_refused(name, reason):
    with pytest.raises(InputError, match=reason):
        plan_swap(name, 'soft_tiny')


def test_wrong_names():
    with pytest.raises(InputError, match='expected one of .*soft_tiny,'):
        plan_swap(stock_config(RETINANET), 'resnet50')
    with pytest.raises(InputError, match='does not exist'):
        plan_swap('mmdet::retinanet/retinanet_r51.py', 'soft_tiny')


def yolo_draft(neck):
    # As MMYOLO's configs, which need another MMCV to run; see docs/zoo.md
    return Draft(dict(
        default_scope='mmyolo',
        default_hooks=dict(param_scheduler=dict(type='YOLOv5ParamSchedulerHook')),
        optim_wrapper=dict(
            constructor='YOLOv5OptimizerConstructor', paramwise_cfg=dict(a=1),
            optimizer=dict(type='SGD', lr=0.01, batch_size_per_gpu=16)),
        model=dict(
            type='YOLODetector', backbone=dict(type='YOLOv5CSPDarknet'),
            neck=dict(type=neck, in_channels=[256, 512, 1024],
                      out_channels=[128, 256, 500], widen_factor=0.5),
            bbox_head=dict(head_module=dict(
                in_channels=[256, 512, 1024], widen_factor=0.5)))))


@pytest.mark.parametrize('neck, out, head', [
    ('YOLOv8PAFPN', [64, 128, 256], dict(in_channels=[64, 128, 256], widen_factor=1.0)),
    ('YOLOv7PAFPN', [64, 128, 256], dict(in_channels=[256, 512, 1024],
                                         widen_factor=0.5)),
    ('YOLOv6RepPAFPN', [64, 128, 250], dict(in_channels=[256, 512, 1024],
                                            widen_factor=0.5)),
])
def test_widths_in_mmyolo(neck, out, head):
    levels = [Level(128, 8), Level(256, 16), Level(512, 32)]
    draft = yolo_draft(neck)
    assert fit_successors(draft, ('model', ), levels, [32, 64, 128, 256]) == (1, 2, 3)
    assert draft.get('model', 'neck') == dict(
        type=neck, in_channels=[64, 128, 256], out_channels=out, widen_factor=1.0)
    assert draft.get('model', 'bbox_head', 'head_module') == head
    xs = [48, 56, 112, 220]
    if neck.startswith('YOLOv6'):
        fit_successors(yolo_draft(neck), ('model', ), levels, xs)
    else:
        with pytest.raises(InputError, match='multiples of 8'):
            fit_successors(yolo_draft(neck), ('model', ), levels, xs)
    with pytest.raises(InputError, match=r'strides \[8, 16, 32, 64\]'):
        fit_successors(yolo_draft(neck), ('model', ), [*levels, Level(512, 64)], xs)


def test_all_parameters_are_optimized_in_mmyolo():
    draft = yolo_draft('YOLOv5PAFPN')
    replace_yolo_groups(draft)
    assert draft.cfg['optim_wrapper'] == dict(
        constructor='DefaultOptimWrapperConstructor', paramwise_cfg=None,
        optimizer=dict(type='SGD', lr=0.01))
    assert draft.get('default_hooks', 'param_scheduler', 'warmup_bias_lr') == 0
    before = draft.overrides()
    replace_yolo_groups(draft)
    assert draft.overrides() == before


def test_levels_of_a_backbone_that_lacks_an_operator():
    backbone = dict(type='ResNet', depth=18, out_indices=(1, 3),
                    dcn=dict(type='DCN', deform_groups=1, fallback_on_stride=False),
                    stage_with_dcn=(False, True, True, True))
    assert find_levels(backbone, 'mmdet') == [Level(128, 8), Level(512, 32)]
    with pytest.raises(ExecutionError, match='stock config runs'):
        find_levels(dict(type='ResNet', depth=19), 'mmdet')


def test_missing_operators_are_named(monkeypatch):
    ext = import_module('mmcv._ext')  # as it is now; other tests replace it
    cfg = Config(dict(default_scope='mmdet', model=dict(
        type='mmpretrain.ResNet', depth=50)))
    assert missing_operators(cfg) == []
    cfg.model = dict(type='DyHead', in_channels=16, out_channels=16, num_blocks=1)

    def absent():
        def call():
            raise NotImplementedError
        call.__module__ = 'mm_efficient.compat'
        return call

    monkeypatch.setattr(ext, 'modulated_deform_conv_forward', absent(), raising=False)
    assert 'modulated_deform_conv_forward' in missing_operators(cfg)


def test_the_source_of_a_config_fits_its_lines():
    overrides = dict(model=dict(neck=[dict(a=1, b='x' * 60), dict(c=(2, ))] * 2,
                                keys={'a.b': dict(d=None)}), load_from=None)
    text = config_text('base.py', overrides, 'title', {})
    names = {}
    exec(text, names)
    assert {key: names[key] for key in overrides} == overrides
    assert max(map(len, text.splitlines())) <= 88


def test_the_table_shows_every_change(capsys):
    from rich.console import Console
    swap = plan_swap(stock_config(RETINANET), 'soft_tiny')
    Console(width=200).print(change_table(swap.changes))
    shown = capsys.readouterr().out
    for change in swap.changes:
        assert change.setting in shown
    assert '[256, 512, 1024, 2048]' in shown


@pytest.fixture
def tool():
    path = Path(__file__).parents[1] / 'tools' / 'swap_backbone.py'
    return runpy.run_path(str(path))['main']


def test_the_tool_prints_what_it_writes(tool, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tool([RETINANET, '--backbone', 'soft_small_norm', '--out', 'my.py'])
    shown = capsys.readouterr().out
    assert 'model.neck.in_channels' in shown and 'written: my.py' in shown
    assert 'get SOFT_Small_norm from' in shown  # the weights, by hand
    tool([RETINANET, '--backbone', 'soft_small_norm', '--keep-optimizer'])
    assert 'AdamW' in Path('my.py').read_text()
    printed = capsys.readouterr().out
    assert '_base_ =' in printed and 'AdamW' not in printed


def test_the_tool_reports_in_one_line(tool, tmp_path):
    own = tmp_path / 'own.py'
    own.write_text(f'_base_ = {RETINANET!r}')
    for arguments in ([RETINANET, '--backbone', 'resnet50'],
                      ['soft_tiny_retinanet_1x.py', '--backbone', 'soft_tiny'],
                      [RETINANET, '--backbone', 'soft_tiny', '--out', 'my.txt'],
                      [str(own), '--backbone', 'soft_tiny', '--out', str(own)]):
        with pytest.raises(SystemExit) as stop:
            tool(arguments)
        assert str(stop.value.code).startswith('error: ')
    assert own.read_text() == f'_base_ = {RETINANET!r}'


def test_every_variant_has_a_config_for_every_recipe():
    from mm_efficient.swap.family_settings import _RECIPES, read_family_settings
    for family in FAMILIES:
        for variant in family.variants:
            for recipe, pattern in _RECIPES.items():
                files = sorted(configs_folder().glob(pattern.format(variant)))
                assert files and 'softmax' not in files[0].name, (variant, recipe)
    found = read_family_settings('lowformer_b1', 'fpn')
    assert found.name == 'seg/lowformer_b1_fpn_80k.py'


def test_the_base_is_a_path_where_mmengine_takes_no_name(tmp_path):
    out = tmp_path / 'my.v1-gn+ws.py'
    cfg = mm_efficient.swap_backbone(
        'mmdet::gn+ws/faster-rcnn_r50_fpn_gn-ws-all_1x_coco.py', 'lowformer_b0', out)
    assert without_scope(Config.fromfile(out).to_dict()) == without_scope(cfg.to_dict())


def test_images_that_are_not_rgb_stay_as_they_are():
    stock = load_config(
        'mmseg::swin/swin-tiny-patch4-window7_upernet_1xb8-20k_levir-256x256.py')
    swap = plan_swap(stock, 'soft_tiny')
    assert stock.model.backbone.in_channels == 6
    assert swap.cfg.model.backbone.in_channels == 6
    assert swap.cfg.model.data_preprocessor == stock.model.data_preprocessor


@pytest.mark.parametrize('head, expected', [
    (dict(type='MultiTaskHead', in_channels=2048, task_heads=dict(
        a=dict(type='LinearClsHead', num_classes=3),
        b=dict(type='LinearClsHead', num_classes=4, in_channels=2048))),
     dict(type='MultiTaskHead', in_channels=220, task_heads=dict(
         a=dict(type='LinearClsHead', num_classes=3),
         b=dict(type='LinearClsHead', num_classes=4, in_channels=220)))),
    (dict(type='MyHead', in_channels=2048, scale=2),
     dict(type='MyHead', in_channels=220, scale=2)),
    (dict(type='MultiLabelClsHead', num_classes=20, thr=0.5),
     dict(type='MultiLabelLinearClsHead', num_classes=20, thr=0.5, in_channels=220)),
    (dict(type='VisionTransformerClsHead', num_classes=20, in_channels=768),
     dict(type='LinearClsHead', num_classes=20, in_channels=220)),
])
def test_heads_of_classifiers(head, expected):
    stock = load_config(RESNET)
    stock.model.head = head
    cfg = mm_efficient.swap_backbone(stock, 'swiftformer_xs')
    assert cfg.model.head.to_dict() == expected


def test_a_file_of_the_stock_config_is_not_overwritten(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('base.py').write_text(stock_config(RETINANET).pretty_text)
    Path('own.py').write_text("_base_ = 'base.py'\n")
    swap = plan_swap('own.py', 'soft_tiny')
    for name in ('own.py', tmp_path / 'base.py'):
        with pytest.raises(InputError, match='is read and would be overwritten'):
            swap.write(name)
    swap.write('my-own.v1.py')
    assert Path('own.py').read_text() == "_base_ = 'base.py'\n"


def test_a_new_style_config_is_written_whole(tmp_path):
    own = tmp_path / 'own.py'
    own.write_text(
        'from mmengine.config import read_base\nfrom mmdet.models import ResNet\n'
        + re.sub(r"backbone=dict\((.*?)type='ResNet'", r'backbone=dict(\1type=ResNet',
                 stock_config(RETINANET).pretty_text, flags=re.DOTALL))
    out = tmp_path / 'my.py'
    cfg = mm_efficient.swap_backbone(own, 'swiftformer_xs', out)
    assert cfg.model.neck.in_channels == [56, 112, 220]
    assert Config.fromfile(out).to_dict() == cfg.to_dict()
