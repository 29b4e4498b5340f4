import pytest
from mmengine.config import Config
from mmengine.registry import DefaultScope
from PIL import Image

from mm_efficient.errors import InputError
from mm_efficient.runs.classes import (
    check_class_folders,
    name_class_folders,
    set_num_classes,
)
from mm_efficient.runs.own_data import find_classes


def folders(root, part, names):
    for name in names:
        (root / part / name).mkdir(parents=True)
        Image.new('RGB', (40, 40)).save(root / part / name / f'{name}.png')


def config(root, num_classes):
    cfg = Config(dict(
        default_scope='mmpretrain',
        model=dict(
            data_preprocessor=dict(num_classes=1000),
            head=dict(num_classes=1000),
            others=[dict(num_classes=2), dict(x=1)]),
        val_evaluator=dict(type='Accuracy', topk=(1, 5))))
    for part in ('train', 'val'):
        cfg[f'{part}_dataloader'] = dict(dataset=dict(
            type='ImageNet', data_root=str(root), split=part, pipeline=[]))
    if num_classes != 1000:
        set_num_classes(cfg, num_classes)
    return cfg


def test_num_classes_of_every_part():
    cfg = config('', 3)
    assert cfg.model.head.num_classes == 3
    assert cfg.model.data_preprocessor.num_classes == 3
    assert cfg.model.others == [dict(num_classes=2), dict(x=1)]  # boundaries, say
    assert cfg.val_evaluator.topk == (1, )
    for wrong in (0, 'three', [3]):
        with pytest.raises(InputError, match='positive integer'):
            set_num_classes(cfg, wrong)


def test_classes_are_called_like_their_folders(tmp_path):
    from mmpretrain.registry import DATASETS
    for part in ('train', 'val'):
        folders(tmp_path, part, ['owl', 'cat', 'dog'])
    cfg = config(tmp_path, 3)
    assert check_class_folders(cfg, ('train', 'val')) == ['cat', 'dog', 'owl']
    find_classes(cfg, ('train', 'val'))
    for part in ('train', 'val'):
        with DefaultScope.overwrite_default_scope('mmpretrain'):
            dataset = DATASETS.build(cfg[f'{part}_dataloader'].dataset)
        assert list(dataset.CLASSES) == ['cat', 'dog', 'owl']
        for i, name in enumerate(dataset.CLASSES):
            assert f'{name}.png' in dataset.get_data_info(i)['img_path']
            assert dataset.get_data_info(i)['gt_label'] == i


def test_names_of_the_config_stay(tmp_path):
    folders(tmp_path, 'val', ['a', 'b'])
    cfg = config(tmp_path, 2)
    cfg.val_dataloader.dataset.metainfo = dict(classes=['Apple', 'Banana'])
    find_classes(cfg, ('val', ))
    assert cfg.val_dataloader.dataset.metainfo.classes == ['Apple', 'Banana']


def test_other_number_of_folders(tmp_path):
    folders(tmp_path, 'train', ['cat', 'dog'])
    with pytest.raises(InputError, match='--num-classes 2') as stop:
        check_class_folders(config(tmp_path, 1000), ('train', ))
    assert '2 class folders' in str(stop.value)


def test_parts_with_other_folders(tmp_path):
    folders(tmp_path, 'train', ['cat', 'dog'])
    folders(tmp_path, 'val', ['cat', 'owl'])
    with pytest.raises(InputError, match=r"\['dog', 'owl'\]"):
        check_class_folders(config(tmp_path, 2), ('train', 'val'))


def test_lists_of_files_are_left_alone(tmp_path):
    folders(tmp_path, 'train', ['some', 'folders'])
    (tmp_path / 'meta').mkdir()
    (tmp_path / 'meta/train.txt').write_text('some/some.png 0\n')
    cfg = config(tmp_path, 1000)
    assert check_class_folders(cfg, ('train', )) == []
    name_class_folders(cfg, ('train', ), ['some', 'folders'])
    assert 'metainfo' not in cfg.train_dataloader.dataset
