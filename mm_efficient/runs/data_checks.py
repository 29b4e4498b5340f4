"""What can be told to be wrong before a runner is built.

Every check raises :class:`InputError` with what was expected, what came and
the next step.
"""
import json
import os.path as osp
from pathlib import Path

from ..errors import InputError
from ..files import is_local, join_root

DATA_HELP = dict(
    mmpretrain='ImageNet-1K (train/<class>/*.JPEG and val/<class>/*.JPEG) from '
    'https://www.image-net.org',
    mmdet='COCO 2017 (train2017.zip, val2017.zip, annotations_trainval2017.zip)'
    ' from https://cocodataset.org/#download',
    mmseg='ADE20K (ADEChallengeData2016.zip) from '
    'http://sceneparsing.csail.mit.edu')
LARGEST_PARSED = 64 << 20  # bytes; beyond, an annotation file is only sniffed


def leaf_datasets(dataset):
    """Data set configs inside possible wrappers.

    Args:
        dataset (dict): Config of a data set or of a wrapper.

    Returns:
        list[dict]: The innermost configs, themselves and not copies.
    """
    if 'datasets' in dataset:
        return [leaf for d in dataset['datasets'] for leaf in leaf_datasets(d)]
    if 'dataset' in dataset:
        return leaf_datasets(dataset['dataset'])
    return [dataset]


def _expected_paths(dataset):
    """Paths that a data set config will read from."""
    root = dataset.get('data_root') or ''
    prefix = dataset.get('data_prefix') or dataset.get('split') or ''
    prefixes = prefix.values() if isinstance(prefix, dict) else [prefix]
    paths = [join_root(root, p) for p in prefixes if p is not None]
    ann_file = dataset.get('ann_file')
    return paths + ([join_root(root, ann_file)] if ann_file else [])


def check_data(cfg, part):
    """Check that the files a data loader reads from are there.

    Args:
        cfg (Config): Config of the run.
        part (str): ``'train'``, ``'val'`` or ``'test'``.

    Raises:
        InputError: If a folder or annotation file is missing, or an annotation
            file is not a COCO one where it has to be.
    """
    loader = cfg.get(f'{part}_dataloader')
    if loader is None:
        return
    for dataset in leaf_datasets(loader['dataset']):
        for path in _expected_paths(dataset):
            if is_local(path) and path and not osp.exists(path):
                raise InputError(_missing_data(cfg, part, path))
        ann_file = dataset.get('ann_file')
        if str(dataset.get('type')).endswith('CocoDataset') and ann_file:
            path = join_root(dataset.get('data_root') or '', ann_file)
            if is_local(path):
                check_coco_file(path, _class_names(dataset))
    _check_evaluators(cfg, part)


def check_batches(runner):
    """Check that an epoch of a training has at least one batch.

    Args:
        runner (Runner): The runner; its data loader is built.

    Raises:
        InputError: If there are fewer images than a batch needs.
    """
    loader = runner.train_dataloader
    if len(loader) == 0:
        batch = runner.cfg.train_dataloader.get('batch_size')
        raise InputError(
            f'{len(loader.dataset)} training images are fewer than a batch, {batch} in '
            f'each of {runner.world_size} processes, and incomplete batches are left '
            'out (drop_last). Add --cfg-options train_dataloader.batch_size=N with '
            'fewer.')


def _class_names(dataset):
    """Class names of a data set config of a ``CocoDataset`` or the like."""
    from mmdet.datasets import CocoDataset
    classes = (dataset.get('metainfo') or {}).get('classes')
    if classes or dataset['type'] not in ('CocoDataset', 'mmdet.CocoDataset'):
        return classes
    return CocoDataset.METAINFO['classes']


def _check_evaluators(cfg, part):
    evaluators = cfg.get(f'{part}_evaluator') or []
    for metric in evaluators if isinstance(evaluators, list) else [evaluators]:
        path = metric.get('ann_file')
        if path and is_local(path) and not osp.exists(path):
            raise InputError(
                f'{path} does not exist; {part}_evaluator of the config reads '
                'it. --cfg-options data_root=FOLDER moves data sets and '
                f'evaluators, otherwise set {part}_evaluator.ann_file too.')


def _missing_data(cfg, part, path):
    source = DATA_HELP.get(cfg.get('default_scope'), 'the data set')
    return (
        f'{path} does not exist; {part}_dataloader of the config reads from it '
        f'(current folder: {Path.cwd()}).\n'
        '  - to try the config on a small generated data set, add --mini\n'
        f'  - to train in earnest, get {source}\n'
        '  - if you have it elsewhere, add --cfg-options data_root=FOLDER')


def check_coco_file(path, classes=None):
    """Check that a file is COCO json, and of the classes wanted.

    Args:
        path (str): The annotation file.
        classes (Sequence[str], optional): Names of the classes wanted, of
            which there has to be one. Defaults to None, any.

    Raises:
        InputError: If it is not.
    """
    expected = ('expected COCO json, an object with the lists "images", '
                '"annotations" and "categories"')
    try:
        if osp.getsize(path) > LARGEST_PARSED:
            with open(path, encoding='utf-8') as file:
                if not file.read(64).lstrip().startswith('{'):
                    raise ValueError('it does not start with "{"')
            return
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise InputError(f'{path} is not an annotation file: {error}; '
                         f'{expected}.') from None
    for key in ('images', 'annotations', 'categories'):
        items = content.get(key) if isinstance(content, dict) else None
        if not isinstance(items, list):
            raise InputError(f'{path} has no list {key!r}; {expected}.')
        if not all(isinstance(item, dict) for item in items):
            raise InputError(f'{path} has a list {key!r} of other things than '
                             f'objects; {expected}.')
    names = [category.get('name') for category in content['categories']]
    if classes and not set(classes) & set(names):
        raise InputError(
            f'{path} has none of the classes {list(classes)[:5]} of the '
            f'config, its categories are {names[:5]}. To train on your own, '
            f'add --cfg-options num_classes={len(names)}, and '
            "metainfo.classes=\"('NAME','NAME')\" behind "
            'train_dataloader.dataset., val_dataloader.dataset. and '
            'test_dataloader.dataset.')
