"""Classes of one's own: from the data into heads, data sets and evaluators."""
import json

import numpy as np
import pytest
from PIL import Image

from mm_efficient.errors import InputError
from mm_efficient.runs import coco, own_data
from mm_efficient.runs.classes import head_classes, set_num_classes
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.own_data import find_classes
from mm_efficient.runs.traversal import SPLITS, nested_dicts, split_datasets

DET, MASKS = 'soft_tiny_retinanet_1x.py', 'soft_tiny_maskrcnn_1x.py'
SEG, UPERNET, CLS = ('soft_tiny_fpn_80k.py', 'soft_tiny_upernet_160k.py',
                     'soft_tiny_300e.py')
HELMETS = ('person', 'helmet', 'vest')
TRAINING = ('train', 'val')


def coco_file(root, split, names, annotations=((1, 0), (1, 1)), **changes):
    """COCO json in the layout of COCO; annotations are (image, category index)."""
    (root / f'{split}2017').mkdir(parents=True, exist_ok=True)
    (root / 'annotations').mkdir(exist_ok=True)
    content = dict(
        images=[dict(id=1, file_name='1.jpg', width=64, height=64)],
        annotations=[
            dict(id=i, image_id=image, category_id=category, bbox=[0, 0, 9, 9], area=81,
                 iscrowd=0, segmentation=[[0, 0, 9, 0, 9, 9]])
            for i, (image, category) in enumerate(annotations)],
        categories=[dict(id=i, name=name) for i, name in enumerate(names)])
    path = root / 'annotations' / f'instances_{split}2017.json'
    path.write_text(json.dumps({**content, **changes}))
    return path


def found(name, root, classes=None, num_classes=None, splits=TRAINING, **options):
    cfg = load_config(name, options.pop('cfg_options', None), data_root=root,
                      classes=classes, num_classes=num_classes)
    find_classes(cfg, splits, classes, num_classes, **options)
    return cfg


def names(cfg, split):
    dataset, = split_datasets(cfg, split)
    return list(coco.class_names(cfg, dataset))


# ------------------------------------------------------------------- detection


@pytest.mark.parametrize('options', [{}, dict(num_classes=3)])
def test_own_categories_are_the_classes(tmp_path, monkeypatch, options):
    lines = []
    monkeypatch.setattr(own_data, 'print_log', lambda text, **kw: lines.append(text))
    for split in TRAINING:
        coco_file(tmp_path, split, HELMETS)
    cfg = found(MASKS, tmp_path, **options)
    for split in SPLITS:
        assert names(cfg, split) == list(HELMETS)
    counts = [n['num_classes'] for n in nested_dicts(cfg.model) if 'num_classes' in n]
    assert counts == [3, 3]
    line, = lines
    assert '3 categories' in line and line.endswith('person, helmet, vest')


def test_categories_of_coco_stay(tmp_path):
    cfg = load_config(DET)
    from mmdet.datasets import CocoDataset
    for split in TRAINING:
        coco_file(tmp_path, split, CocoDataset.METAINFO['classes'])
    assert found(DET, tmp_path).to_dict() == \
        load_config(DET, data_root=tmp_path).to_dict()
    assert head_classes(cfg.model) == 80


def test_the_order_of_labels_is_that_of_the_file(tmp_path):
    """MMDetection's numbering; names in another order would be exchanged."""
    for split in TRAINING:
        coco_file(tmp_path, split, HELMETS)
    cfg = found(DET, tmp_path, classes=['vest', 'person'])
    assert names(cfg, 'train') == ['person', 'vest'] and head_classes(cfg.model) == 2
    coco_file(tmp_path, 'val', HELMETS[::-1])
    with pytest.raises(InputError, match='in different order'):
        found(DET, tmp_path)


def test_a_detector_sees_its_own_classes(tmp_path):
    """What MMDetection makes of the config: labels, and names for the evaluator."""
    from mmengine.registry import DATASETS, DefaultScope
    for split in TRAINING:
        coco_file(tmp_path, split, HELMETS, [(1, 2), (1, 0), (1, 1)])
    cfg = found(DET, tmp_path, classes=['vest', 'person'])
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build({**cfg.val_dataloader.dataset, 'pipeline': []})
    labels = [box['bbox_label'] for box in dataset.get_data_info(0)['instances']]
    assert [dataset.metainfo['classes'][i] for i in labels] == ['vest', 'person']


@pytest.mark.parametrize('name, options, message', [
    (DET, dict(num_classes=4), '--num-classes is 4.*3 categories: person, hel'),
    (DET, dict(classes=['person', 'helmt']), "'helmt' .did you mean 'helmet'"),
    (DET, dict(classes=['cat']), "lacks the categories 'cat'; it has 'person', 'helm"),
    (DET, dict(classes=['person', 'vest'], num_classes=3), '--classes names 2'),
    (DET, dict(classes='person'), 'must be a list of names'),
    (DET, dict(classes=['vest', 'vest']), 'different names'),
    (DET, dict(cfg_options={'train_dataloader.dataset.metainfo.classes': 'person'}),
     r"Write a list: \['person'\]"),
    (MASKS, dict(classes=['person', 'vest'], cfg_options={
        'model.roi_head.bbox_head.num_classes': 1}), 'has 1 classes.*has 2'),
])
def test_contradictions(tmp_path, name, options, message):
    for split in TRAINING:
        coco_file(tmp_path, split, HELMETS)
    with pytest.raises(InputError, match=message):
        found(name, tmp_path, **options)


@pytest.mark.parametrize('categories, message', [
    ([dict(id=1, name='a'), dict(id=2, name='a')], 'same name: a'),
    ([dict(id=1, name='a'), dict(id=1, name='b')], 'same id'),
    ([dict(id=1)], 'without "id" or "name"'),
    ([dict(id=1, name=['a'])], 'without "id" or "name"'),
])
def test_categories_that_cannot_be_numbered(tmp_path, categories, message):
    for split in TRAINING:
        coco_file(tmp_path, split, (), categories=categories)
    with pytest.raises(InputError, match=message):
        found(DET, tmp_path)


def test_numbers_as_names(tmp_path):
    for split in TRAINING:
        coco_file(tmp_path, split, (), categories=[dict(id=i + 1, name=i)
                                                   for i in range(3)])
    assert names(found(DET, tmp_path), 'train') == [0, 1, 2]
    with pytest.raises(InputError, match="lacks the categories 'cat'; it has 0, 1, 2"):
        found(DET, tmp_path, classes=['cat'])


def test_categories_that_are_not_used_are_counted(tmp_path, monkeypatch):
    path = coco_file(tmp_path, 'val', HELMETS, [(1, 0), (1, 1), (1, 1), (1, 2)])
    lines = []
    monkeypatch.setattr(coco, 'print_log', lambda text, **kw: lines.append(text))
    found(DET, tmp_path, classes=['person'], splits=['val'])
    line, = lines
    assert line.startswith(f'{path}: 3 annotations of 2 categories')
    assert 'helmet (2), vest (1)' in line


@pytest.mark.parametrize('text', [
    '{"info": {"categories": "none [yet]"}, "images": [], "categories" :\n'
    ' [{"id": 7, "name": "a ] \\" [b"}], "annotations": []}',
    '{"annotations": [{"category_id": 1}], "categories": '
    '[{"id": 7, "name": "a ] \\" [b", "keypoints": ["x", "y"], "x": [[1, 2]]}]}'])
def test_categories_are_found_without_parsing_the_file(tmp_path, text):
    path = tmp_path / 'file.json'
    path.write_text(text)
    assert coco.read_categories(str(path)) == {7: 'a ] " [b'}


def test_a_test_set_without_annotations(tmp_path):
    from mm_efficient.runs.data_checks import check_data
    path = coco_file(tmp_path, 'val', HELMETS)
    content = json.loads(path.read_text())
    del content['annotations']
    path.write_text(json.dumps(content))
    cfg = found(DET, tmp_path, splits=['test'])
    with pytest.raises(InputError, match="no list 'annotations'"):
        check_data(cfg, 'test')
    cfg.test_evaluator.update(format_only=True, outfile_prefix='results')
    check_data(cfg, 'test')


def test_the_order_of_a_checkpoint(tmp_path):
    coco_file(tmp_path, 'val', HELMETS)
    found(DET, tmp_path, splits=['test'], trained=dict(classes=HELMETS))
    with pytest.raises(InputError, match='labels would be exchanged'):
        found(DET, tmp_path, splits=['test'], trained=dict(classes=HELMETS[::-1]))


# ---------------------------------------------------------------- segmentation


def label_maps(root, maps, image_suffix='.jpg'):
    """Data in ADE20K's layout with these label maps in training and validation."""
    for part in ('training', 'validation'):
        for folder in ('images', 'annotations'):
            (root / folder / part).mkdir(parents=True)
        for i, values in enumerate(maps):
            labels = np.array(values, np.uint8)
            image = np.zeros((*labels.shape[:2], 3), np.uint8)
            Image.fromarray(image).save(root / f'images/{part}/{i}{image_suffix}')
            Image.fromarray(labels).save(root / f'annotations/{part}/{i}.png')
    return root


ROAD = ['background', 'road', 'car']


@pytest.mark.parametrize('maps, reduce_zero_label, first', [
    ([[[0, 1], [2, 255]]], False, 0),
    ([[[1, 2], [3, 255]]], True, 1),
    ([[[0, 1], [1, 1]], [[2, 3], [3, 3]]], True, 1)])
def test_label_zero_follows_from_the_label_maps(
        tmp_path, monkeypatch, maps, reduce_zero_label, first):
    from mmengine.registry import DATASETS, DefaultScope

    from mm_efficient.runs import label_maps as module
    lines = []
    monkeypatch.setattr(module, 'print_log', lambda text, **kw: lines.append(text))
    cfg = found(UPERNET, label_maps(tmp_path, maps, '.png'), classes=ROAD)
    assert f'values {first} to {first + 2} are background, road, car' in lines[0]
    assert f'reduce_zero_label={reduce_zero_label}' in lines[0]
    heads = cfg.model.decode_head, cfg.model.auxiliary_head
    assert [head.num_classes for head in heads] == [3, 3]
    for split in SPLITS:
        settings = cfg[f'{split}_dataloader'].dataset
        with DefaultScope.overwrite_default_scope('mmseg'):
            dataset = DATASETS.build({**settings, 'pipeline': settings.pipeline[:1] + [
                dict(type='LoadAnnotations')]})
        assert list(dataset.metainfo['classes']) == ROAD
        assert len(dataset) == len(maps)  # although the images are .png
        expected = np.array(maps[0], np.uint8)
        expected = np.where(expected == 255, 255, expected - first)
        np.testing.assert_array_equal(dataset[0]['gt_seg_map'], expected)


def test_a_number_alone_gives_no_names_of_others(tmp_path):
    cfg = found(SEG, label_maps(tmp_path, [[[0, 1]]]), num_classes=2)
    assert names(cfg, 'train') == ['class 0', 'class 1']
    assert cfg.train_dataloader.dataset.reduce_zero_label is False


def test_the_training_decides_in_a_test(tmp_path):
    """A test set need not have every class."""
    root = label_maps(tmp_path, [[[0, 1], [2, 2]]])
    cfg = found(SEG, root, classes=ROAD, splits=['test'],
                trained=dict(classes=ROAD, reduce_zero_label=True))
    assert cfg.test_dataloader.dataset.reduce_zero_label is True


@pytest.mark.parametrize('maps, options, message', [
    ([[[0, 7]]], dict(classes=ROAD), r'0.png has the values 7, but there are 3'),
    ([[[0, 255]]], dict(classes=ROAD[:2]), 'values 0, 255 only'),
    ([[[[0, 0, 0], [1, 1, 1]]]], dict(classes=ROAD), 'is not a label map'),
    ([[[0, 1]]], dict(classes=['road']), '--classes background road'),
    ([[[0, 1]]], dict(num_classes=1), 'at least two classes'),
    ([[[0, 1]]], dict(cfg_options={'model.decode_head.num_classes': 2}),
     'model has 2 classes, but ADE20KDataset has 150'),
    ([[[1, 3]]], dict(classes=ROAD, cfg_options={
        f'{split}_dataloader.dataset.reduce_zero_label': False for split in SPLITS}),
     'value 3, but with reduce_zero_label=False')])
def test_label_maps_that_contradict(tmp_path, maps, options, message):
    with pytest.raises(InputError, match=message):
        found(SEG, label_maps(tmp_path, maps), **options)


def test_different_suffixes(tmp_path):
    root = label_maps(tmp_path, [[[0, 1], [2, 2]]])
    for path in (root / 'images/validation').iterdir():
        path.rename(path.with_suffix('.png'))
    with pytest.raises(InputError, match=r"different suffixes.*\.jpg.*\.png"):
        found(SEG, root, classes=ROAD)


def test_reduce_zero_label_is_said_once():
    """In the data set; an override of it used to end in an AssertionError."""
    from mmengine.registry import DATASETS, DefaultScope
    cfg = load_config(SEG, {'train_dataloader.dataset.reduce_zero_label': False})
    kinds = [step for step in cfg.train_dataloader.dataset.pipeline
             if step['type'] == 'LoadAnnotations']
    assert kinds == [dict(type='LoadAnnotations')]
    with DefaultScope.overwrite_default_scope('mmseg'):
        default = DATASETS.build(dict(type='ADE20KDataset', lazy_init=True))
    assert default.reduce_zero_label


# -------------------------------------------------------------- classification


def test_folders_are_the_classes(tmp_path):
    for part in TRAINING:
        for name in ('owl', 'cat'):
            (tmp_path / part / name).mkdir(parents=True)
    cfg = found(CLS, tmp_path, classes=['owl', 'cat'])
    assert names(cfg, 'train') == ['cat', 'owl'] and head_classes(cfg.model) == 2
    assert cfg.model.data_preprocessor.num_classes == 2
    assert cfg.val_evaluator.topk == (1, )
    with pytest.raises(InputError, match=r"folders \['cat', 'owl'\]"):
        found(CLS, tmp_path, classes=['owl', 'dog'])


def test_a_thousand_folders_that_are_not_imagenet(tmp_path):
    for part in TRAINING:
        for i in range(1000):
            (tmp_path / part / f'shop {i:03}').mkdir(parents=True)
    assert names(found(CLS, tmp_path), 'val')[0] == 'shop 000'


# ----------------------------------------------------------------------- heads


@pytest.mark.parametrize('model, expected', [
    (dict(backbone={}, bbox_head=dict(num_classes=80), rpn_head=dict(num_classes=1)),
     [3, 1]),
    (dict(backbone={}, decode_head=[dict(num_classes=19), dict(num_classes=19)],
          auxiliary_head=[dict(num_classes=2)]), [3, 3, 2]),
    (dict(detector=dict(backbone={}, bbox_head=dict(num_classes=20))), [3]),
    (dict(backbone={}, semantic_head=dict(num_classes=183),
          roi_head=dict(bbox_head=[dict(num_classes=80)])), [183, 3]),
    (dict(backbone={}, decode_head=dict(kernel_generate_head=dict(num_classes=150))),
     [3])])
def test_heads_of_other_tasks_keep_their_number(model, expected):
    from mmengine.config import Config
    cfg = Config(dict(model=model))
    set_num_classes(cfg, 3)
    assert [node['num_classes'] for node in nested_dicts(cfg.model)
            if 'num_classes' in node] == expected


def test_weights_of_classes():
    from mmengine.config import Config
    model = dict(backbone={}, decode_head=dict(
        num_classes=19, loss_cls=dict(class_weight=[1.] * 19 + [.1])))
    cfg = Config(dict(model=model))
    set_num_classes(cfg, 3)
    assert cfg.model.decode_head.loss_cls.class_weight == [1., 1., 1., .1]
    cfg.model.decode_head.loss_cls.class_weight = [1., 2., 3.]
    with pytest.raises(InputError, match='for each of 3 classes, but there are 4'):
        set_num_classes(cfg, 4)


def test_no_head_to_change():
    from mmengine.config import Config
    cfg = load_config(DET)
    rpn = Config(dict(
        default_scope='mmdet', test_dataloader=cfg.test_dataloader,
        model=dict(type='RPN', backbone={}, rpn_head=dict(type='RPNHead'))))
    with pytest.raises(InputError, match='no head of the model'):
        load_config(rpn, num_classes=3)


# ----------------------------------------------------------------- a whole run
