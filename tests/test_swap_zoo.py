"""Stock configs with other backbones: a sample here, all of docs/zoo.md by -m zoo."""
import re
import sys
from pathlib import Path

import pytest

from mm_efficient.runs.configs import load_config
from mm_efficient.runs.model_checks import check_model
from mm_efficient.swap import plan_swap, swap_backbone

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / 'tools' / 'model_zoo'))

from check_zoo import check  # noqa: E402
from trials import run_trial, trial_config  # noqa: E402

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

# One of each kind: config, backbone, out_indices
BUILT = [
    ('mmdet::retinanet/retinanet_r18_fpn_1x_coco', 'soft_tiny', (1, 2, 3)),
    ('mmdet::faster_rcnn/faster-rcnn_r50-caffe_c4-1x_coco', 'swiftformer_xs', (2, )),
    ('mmdet::faster_rcnn/faster-rcnn_r50-caffe-dc5_1x_coco', 'soft_tiny', (2, )),
    ('mmdet::yolo/yolov3_d53_8xb8-320-273e_coco', 'lowformer_b0', (1, 2, 3)),
    ('mmdet::ssd/ssd300_coco', 'reduceformer_b1', (1, 2)),
    ('mmdet::cornernet/cornernet_hourglass104_32xb3-210e-mstest_coco', 'soft_tiny',
     (3, )),
    ('mmdet::yolof/yolof_r50-c5_8xb8-1x_coco', 'ecoformer_pvt_b0', (3, )),
    ('mmdet::mask2former/mask2former_r50_8xb2-lsj-50e_coco', 'swiftformer_xs',
     (0, 1, 2, 3)),
    ('mmdet::soft_teacher/soft-teacher_faster-rcnn_r50-caffe_fpn_180k_semi-0.1-coco',
     'lowformer_b0', (0, 1, 2, 3)),
    ('mmdet::reid/reid_r50_8xb32-6e_mot17train80_test-mot17val20', 'soft_tiny', (3, )),
    ('mmdet::centernet/centernet_r18_8xb16-crop512-140e_coco', 'soft_tiny', (3, )),
    ('mmseg::deeplabv3plus/deeplabv3plus_r18-d8_4xb2-80k_cityscapes-512x1024',
     'ecoformer_twins_s', (0, 2, 3)),
    ('mmseg::icnet/icnet_r18-d8_4xb2-80k_cityscapes-832x832', 'reduceformer_b1',
     (1, 2, 3)),
    ('mmseg::stdc/stdc1_4xb12-80k_cityscapes-512x1024', 'ecoformer_pvt_b0', (1, 2, 3)),
    ('mmseg::segnext/segnext_mscan-t_1xb16-adamw-160k_ade20k-512x512', 'lowformer_b0',
     (1, 2, 3)),
    ('mmseg::knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512', 'soft_tiny',
     (2, 3)),
]
# Config, backbone, options that make the stock model small
TRANSFORMER = dict(embed_dims=64, num_heads=4, num_layers=4, out_indices=(0, 1, 2, 3))
TRAINED = [
    ('mmdet::yolox/yolox_tiny_8xb8-300e_coco', 'swiftformer_xs', {}),
    ('mmdet::detr/detr_r18_8xb2-500e_coco', 'soft_tiny', {
        'model.encoder.num_layers': 1, 'model.decoder.num_layers': 1,
        'model.test_cfg.max_per_img': 8}),
    ('mmdet::libra_rcnn/libra-retinanet_r50_fpn_1x_coco', 'soft_tiny_norm', {
        'model.neck.0.out_channels': 32, 'model.neck.1.in_channels': 32,
        'model.bbox_head.in_channels': 32, 'model.bbox_head.feat_channels': 32}),
    ('mmseg::fastfcn/fastfcn_r50-d32_jpu_psp_4xb2-80k_cityscapes-512x1024',
     'reduceformer_b1', {'model.neck.mid_channels': 32,
                         'model.decode_head.in_channels': 128}),
    ('mmseg::bisenetv1/bisenetv1_r18-d32_4xb4-160k_cityscapes-1024x1024',
     'swiftformer_xs', {}),
    ('mmseg::setr/setr_vit-l-mla_8xb1-160k_ade20k-512x512', 'lowformer_b0', {
        'model.neck.in_channels': [64] * 4,
        **{f'model.backbone.{key}': value for key, value in TRANSFORMER.items()}}),
    ('mmseg::beit/beit-base_upernet_8xb2-160k_ade20k-640x640', 'soft_tiny', {
        'model.neck.embed_dim': 64, 'model.decode_head.in_channels': [64] * 4,
        'model.decode_head.channels': 64, 'model.auxiliary_head.in_channels': 64,
        **{f'model.backbone.{key}': value for key, value in TRANSFORMER.items()}}),
    ('mmseg::unet/unet-s5-d16_fcn_4xb4-40k_stare-128x128', 'reduceformer_b1', {}),
    ('mmpretrain::vgg/vgg11_8xb32_in1k', 'lowformer_b0', {}),
]


@pytest.mark.parametrize('name, variant, out_indices', BUILT)
def test_neck_and_heads_take_the_new_feature_maps(name, variant, out_indices):
    swap = plan_swap(f'{name}.py', variant)
    (backbone,) = (part for part in backbones(swap.cfg.model)
                   if part['type'].startswith('mmpretrain.') and 'arch' in part)
    assert backbone['out_indices'] == out_indices
    check_model(swap.cfg, pretrained=False)


def backbones(node):
    """All backbones in a model, those in others included."""
    for key, value in node.items() if isinstance(node, dict) else ():
        if key in ('backbone', 'backbone_cfg'):
            yield value
        yield from backbones(value)


@pytest.mark.parametrize('name, variant, options', TRAINED)
def test_it_trains_and_predicts(name, variant, options):
    cfg = swap_backbone(load_config(f'{name}.py', options), variant)
    assert run_trial(trial_config(cfg)) == []


def rows():
    """The rows of docs/zoo.md."""
    page = ROOT / 'docs' / 'zoo.md'
    found, package = [], ''
    titles = dict(MMDetection='mmdet', MMSegmentation='mmseg', MMPretrain='mmpretrain',
                  MMRotate='mmrotate', MMYOLO='mmyolo')
    for line in page.read_text().splitlines() if page.is_file() else ():
        if line.startswith('## '):
            package = titles[line[3:].partition(',')[0]]
        if match := re.match(r'\| `(\S+)` \| `(\w+)` \| ([^:|]*[^:| ])', line):
            found.append((f'{package}::{match[1]}.py', *match.groups()[1:]))
    return found


@pytest.mark.zoo
@pytest.mark.parametrize('name, variant, expected', rows())
def test_the_whole_zoo(name, variant, expected):
    pytest.importorskip(name.partition('::')[0])
    result = check(name, variant)
    kind = result.partition(':')[0]
    if kind != expected and kind == 'fails with its stock backbone too' \
            and 'install' in result:  # a package that few algorithms need
        pytest.skip(result)
    assert kind == expected, result
