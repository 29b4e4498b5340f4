"""Wrapped models predict what OpenMMLab's models do."""
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from small_models import build_model, small_images, small_model

from mm_efficient.deploy.detectors import paste_masks
from mm_efficient.deploy.layers import AdaptiveAverage, StridedFPN
from mm_efficient.deploy.models import deploy_model
from mm_efficient.deploy.verification import measure_parity, predict
from mm_efficient.errors import InputError
from mm_efficient.files import configs_folder
from mm_efficient.runs.configs import load_config

NAMES = ['det/swiftformer_xs_retinanet_1x', 'det/lowformer_b0_maskrcnn_1x']


def assert_equal_detections(deployed, images, samples):
    """Detections agree up to rounding, which differs between processors."""
    found = measure_parity(deployed, images, samples)
    assert found.metrics['boxes'] == sum(len(s.pred_instances) for s in samples)
    assert found.metrics['matched'] == 1
    assert found.metrics['pixels'] < 1e-3 and found.metrics['scores'] < 1e-5
    assert found.metrics.get('mask IoU', 1) > 0.999


@pytest.mark.parametrize('name', NAMES)
def test_detectors(name):
    model = small_model(name)
    deployed = deploy_model(model)
    for images in small_images():
        samples = predict(model, images)
        numbers = [len(sample.pred_instances) for sample in samples]
        assert min(numbers) > 5  # or there is nothing to compare
        with torch.no_grad():
            assert_equal_detections(deployed, images, samples)
            dets, labels, *masks = deployed(images)
        assert dets.shape == (len(images), 100, 5) and labels.dtype == torch.int64
        for i, n in enumerate(numbers):
            assert (labels[i, :n] >= 0).all() and (dets[i, :n, 4] > 0).all()
            assert (labels[i, n:] == -1).all() and (dets[i, n:] == 0).all()
            if masks:
                pasted = paste_masks(masks[0][i, :n], dets[i, :n, :4], images.shape[2:])
                assert 0 < pasted.float().mean() < 1
    # The network sees the padding, but boxes end before it
    assert images.shape[3] % 32 and dets[..., 2].max() <= images.shape[3]


def test_detector_without_masks_and_with_boxes_of_all_classes():
    options = {'model.roi_head.mask_head': None,
               'model.roi_head.mask_roi_extractor': None,
               'model.roi_head.bbox_head.reg_class_agnostic': True}
    model = small_model('det/lowformer_b0_maskrcnn_1x', **options)
    images = small_images()[0]
    samples = predict(model, images)
    assert all(len(sample.pred_instances) for sample in samples)
    with torch.no_grad():
        assert_equal_detections(deploy_model(model), images, samples)


@pytest.mark.parametrize('name', ['seg/lowformer_b0_upernet_160k',
                                  'seg/swiftformer_xs_fpn_40k'])
def test_segmentors(name):
    model = small_model(name)
    expected = [predict(model, images) for images in small_images()]
    deployed = deploy_model(model)  # with layers that export
    for images, samples in zip(small_images(), expected):
        with torch.no_grad():
            labels, = deployed(images)
        truth = torch.stack([sample.pred_sem_seg.data for sample in samples])
        assert labels.shape == truth.shape and len(truth.unique()) > 1
        assert (labels == truth).float().mean() > 0.9999


def test_classifiers():
    model = small_model('cls/swiftformer_xs_300e')
    images = small_images()[0]
    with torch.no_grad():
        scores, = deploy_model(model)(images)
    expected = torch.stack([s.pred_score for s in predict(model, images)])
    torch.testing.assert_close(scores, expected)
    assert expected.std(1).min() > 1e-3  # not all alike


def test_masks_of_another_threshold():
    model = small_model('det/lowformer_b0_maskrcnn_1x',
                        **{'model.test_cfg.rcnn.mask_thr_binary': 0.3})
    images = small_images()[0]
    samples = predict(model, images)
    deployed = deploy_model(model)
    with torch.no_grad():
        for threshold, lowest, highest in ((0.3, 0.99, 1), (0.5, 0, 0.95)):
            found = measure_parity(deployed, images, samples, threshold)
            assert lowest <= found.metrics['mask IoU'] <= highest


def test_segmentors_that_pad():
    padded = small_model('seg/swiftformer_xs_fpn_40k', **{
        'model.data_preprocessor.test_cfg': dict(size_divisor=64),
        'model.data_preprocessor.pad_val': 7})
    images = small_images()[1]  # 75 x 161
    with torch.no_grad():
        labels, = deploy_model(padded)(images)
    truth = predict(padded, images)[0].pred_sem_seg.data
    assert (labels[0] == truth).float().mean() > 0.9999
    plain = small_model('seg/swiftformer_xs_fpn_40k')
    assert (predict(plain, images)[0].pred_sem_seg.data == truth).float().mean() < 0.999
    fixed = build_model('seg/swiftformer_xs_fpn_40k', **{
        'model.data_preprocessor.test_cfg': dict(size=(256, 256))})
    with pytest.raises(InputError, match='test_cfg.size pads to a fixed size'):
        deploy_model(fixed)


def test_classifiers_of_several_labels():
    head = dict(_delete_=True, type='MultiLabelLinearClsHead', num_classes=7,
                in_channels=256)
    model = small_model('cls/reduceformer_b1_300e', **{
        'model.head': head, 'model.neck': dict(type='GlobalAveragePooling')})
    images = small_images()[0]
    with torch.no_grad():
        scores, = deploy_model(model)(images)
    expected = torch.stack([s.pred_score for s in predict(model, images)])
    torch.testing.assert_close(scores, expected)
    assert not torch.allclose(scores.sum(1), torch.ones(2), atol=0.1)


def test_coarsest_levels():
    from mmdet.models import FPN
    neck = FPN([4, 4], 8, num_outs=4).eval()
    maps = [torch.rand(1, 4, 13, 22), torch.rand(1, 4, 7, 11)]
    expected = neck(maps)
    levels = StridedFPN(neck)(maps)
    assert [x.shape[2:] for x in levels] == [(13, 22), (7, 11), (4, 6), (2, 3)]
    for level, truth in zip(levels, expected):
        assert torch.equal(level, truth)


def test_models_that_see_bgr():
    cfg = Config.fromfile(configs_folder() / 'cls' / 'lowformer_b0_300e.py')
    cfg.model.data_preprocessor.to_rgb = False
    cfg.model.backbone.out_indices = (3, )
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        model = MODELS.build(cfg.model).eval()
    images = small_images()[0]
    x = deploy_model(model).preprocess(images)
    data = dict(inputs=images.flip(1))  # BGR, as pipelines deliver it
    torch.testing.assert_close(x, model.data_preprocessor(data)['inputs'])


@pytest.mark.parametrize('size', [(1, 1), (2, 3), (6, 6), (7, 5)])
def test_adaptive_average(size):
    for shape in ((7, 9), (64, 48), (6, 13)):
        x = torch.randn(2, 3, *shape, dtype=torch.float64)
        torch.testing.assert_close(AdaptiveAverage(size)(x),
                                   F.adaptive_avg_pool2d(x, size), rtol=0, atol=1e-14)


@pytest.mark.parametrize('options, reason', [
    ({'model.test_cfg.rcnn.nms.type': 'soft_nms'}, 'rcnn.nms.type is soft_nms'),
    ({'model.test_cfg.rcnn.max_per_img': -1}, 'rcnn.max_per_img is -1'),
    ({'model.test_cfg.rpn.nms_pre': -1}, 'rpn.nms_pre is -1'),
    ({'model.test_cfg.rcnn.mask_thr_binary': -1}, 'mask_thr_binary is negative'),
    ({'model.roi_head.bbox_roi_extractor.roi_layer.aligned': False}, 'aligned RoIAli'),
    ({'model.roi_head.bbox_roi_extractor.roi_layer': dict(
        _delete_=True, type='RoIPool', output_size=7)}, 'aligned RoIAlign'),
    ({'model.roi_head.bbox_head.loss_cls': dict(
        _delete_=True, type='SeesawLoss', num_classes=7)}, 'is a Shared2FCBBoxHead'),
])
def test_detectors_that_are_something_else_are_refused(options, reason):
    with torch.device('meta'):
        model = build_model('det/lowformer_b0_maskrcnn_1x', **options)
    with pytest.raises(InputError, match=f'RCNN cannot be exported as a whole.*{reason}'
                                         '.*--backbone'):
        deploy_model(model)


def test_other_models_are_refused():
    with pytest.raises(InputError, match='ImageClassifier cannot .* is a NoneType'):
        deploy_model(MODELS.build(dict(type='mmpretrain.ImageClassifier', backbone=dict(
            type='mmpretrain.ResNet', depth=18, stem_channels=8, base_channels=8))))
    with pytest.raises(InputError, match='Linear cannot be .* expected an ImageClass'):
        deploy_model(torch.nn.Linear(3, 3))
    cfg = load_config(str(configs_folder() / 'det' / 'lowformer_b0_maskrcnn_1x.py'))
    cfg.model.type = 'FastRCNN'  # proposals come with the image
    del cfg.model['rpn_head'], cfg.model.train_cfg['rpn_proposal']
    with DefaultScope.overwrite_default_scope('mmdet'), torch.device('meta'), \
            pytest.raises(InputError, match='FastRCNN cannot be .* it has no RPNHead'):
        deploy_model(MODELS.build(cfg.model))


def test_sliding_windows_are_refused():
    slide = dict(mode='slide', crop_size=(64, 64), stride=(32, 32))
    model = build_model('seg/lowformer_b0_upernet_160k', **{'model.test_cfg': slide})
    with pytest.raises(InputError, match="mode='slide'; set it to whole"):
        deploy_model(model)
