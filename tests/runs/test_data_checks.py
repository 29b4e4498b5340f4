"""Data that the frameworks read is not refused."""
import json

import pytest
from mmengine.config import Config
from mmpretrain.datasets import CustomDataset

from mm_efficient.errors import InputError
from mm_efficient.runs.configs import load_config, move_data
from mm_efficient.runs.data_checks import check_data


def config(scope, **dataset):
    return Config(dict(default_scope=scope, model={}, train_dataloader=dict(
        dataset=dict(pipeline=[], **dataset))))


@pytest.mark.parametrize('scope, dataset', [
    ('mmpretrain', dict(type='CIFAR10', data_prefix='nowhere')),  # downloads itself
    ('mmpretrain', dict(type='CUB', data_root='.', split='train')),  # not a folder
    ('mmdet', dict(type='CocoDataset', data_root='s3://bucket', ann_file='a.json')),
    ('mmdet', dict(type='CocoDataset', data_root='b:s3://bucket', ann_file='a.json')),
    ('mmdet', dict(type='CocoDataset', data_root='nowhere', ann_file='a.json',
                   backend_args=dict(backend='petrel', path_mapping={}))),
    ('mmdet', dict(type='OwnCocoDataset', ann_file='other.json')),
    ('mmdet', dict(type='OwnCocoDataset', ann_file=['other.json', 'more.json'])),
    ('mmdet', dict(type='CocoPanopticDataset', ann_file='other.json'))])
def test_not_refused(tmp_path, monkeypatch, scope, dataset):
    monkeypatch.chdir(tmp_path)
    for name in ('other.json', 'more.json'):
        (tmp_path / name).write_text('[]')
    check_data(config(scope, **dataset), 'train')


def label_list(folder, content, split='train', **settings):
    (folder / 'list.txt').write_bytes(content)
    dataset = dict(type='CustomDataset', data_root=str(folder), ann_file='list.txt',
                   pipeline=[], **settings)
    check_data(Config({'default_scope': 'mmpretrain',
                       'model': dict(head=dict(num_classes=3)),
                       f'{split}_dataloader': dict(dataset=dataset)}), split)


@pytest.mark.parametrize('line, message', [
    (b'', 'line 2, cannot be read: expected an image, a blank and the number'),
    (b'b.jpg', 'line 2, cannot'), (b'b.jpg,1', 'line 2, cannot'),
    (b'b.jpg\t1', 'line 2, cannot'), (b'b.jpg cat', 'line 2, cannot.*cat'),
    (b'b.jpg 3', 'line 2, has the label 3, but the 3 classes of the model are 0 to 2'),
    (b'b.jpg -1', 'line 2, has the label -1'), (b'\xe4.jpg 1', 'cannot be read.*utf')])
def test_lists_of_labels(tmp_path, line, message):
    with pytest.raises(InputError, match=rf'list.txt, .*{message}'):
        label_list(tmp_path, b'a b.jpg 0\n' + line + b'\n')


def test_more_classes_in_a_metric_than_in_the_model():
    cfg = config('mmpretrain', type='CustomDataset')
    cfg.model = dict(head=dict(num_classes=3))
    for topk in (3, (1, 3), None):
        cfg.train_evaluator = [dict(type='Accuracy', topk=topk)]
        check_data(cfg, 'train')
    cfg.train_evaluator = dict(type='Accuracy', topk=(1, 5))
    with pytest.raises(InputError, match='topk asks for the first 5 .* model has 3'):
        check_data(cfg, 'train')


@pytest.mark.parametrize('content, settings, samples', [
    (b'a b.jpg 0\r\n c.jpg  2 \r\n', {}, 2),
    (b'a.jpg 7\n', dict(split='val'), 1),  # only compared
    (b'a.jpg\n', dict(with_label=False), 1)])
def test_lists_that_mmpretrain_reads(tmp_path, content, settings, samples):
    """MMPretrain's data set of the same list has that many samples."""
    label_list(tmp_path, content, **settings)
    dataset = CustomDataset(data_root=str(tmp_path), ann_file='list.txt', pipeline=[],
                            with_label=settings.get('with_label', True))
    assert len(dataset) == samples


@pytest.mark.parametrize('files', ['a.json', ['a.json', 'b.json'], ('b.json', )])
def test_several_annotation_files(tmp_path, files):
    content = dict(images=[], annotations=[], categories=[dict(id=1, name='x')])
    dataset = dict(type='CocoDataset', data_root=str(tmp_path), ann_file=files,
                   data_prefix=dict(img=''))
    first, *_ = files if not isinstance(files, str) else [files]
    (tmp_path / first).write_text(json.dumps(content))
    missing = isinstance(files, list)
    for _ in range(1 + missing):
        if missing:
            with pytest.raises(InputError, match='b.json does not exist'):
                check_data(config('mmdet', **dataset), 'train')
            (tmp_path / 'b.json').write_text(json.dumps(content))
            missing = False
        check_data(config('mmdet', **dataset), 'train')
    (tmp_path / 'b.json').write_text('[]')
    if 'b.json' in files:
        with pytest.raises(InputError, match="b.json has no list 'images'"):
            check_data(config('mmdet', **dataset), 'train')


def test_files_of_metrics_move_with_their_folder():
    """Several of them too; not those of a folder whose name only starts alike."""
    cfg = load_config('soft_tiny_retinanet_1x.py')
    for given, moved in (
            ('data/coco/a.json', '/own/a.json'),
            (['data/coco/a.json', 'b.json'], ['/own/a.json', 'b.json']),
            ('data/coco_old/a.json', 'data/coco_old/a.json')):
        cfg.val_dataloader.dataset.data_root = 'data/coco'
        cfg.val_evaluator.ann_file = given
        move_data(cfg, '/own')
        assert cfg.val_evaluator.ann_file == moved


def test_evaluators_with_several_metrics():
    from mm_efficient.runs.traversal import split_metrics
    metric = dict(type='CocoMetric')
    for evaluator in (metric, [metric], dict(type='Evaluator', metrics=[metric]),
                      dict(metrics=metric)):
        assert split_metrics(Config(dict(val_evaluator=evaluator)), 'val') == [metric]
