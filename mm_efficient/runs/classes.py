"""Other classes than those of a config."""
from pathlib import Path

from ..errors import InputError
from ..files import join_root
from .data_checks import leaf_datasets


def set_num_classes(cfg, num_classes):
    """Make every head of a config tell this many classes apart.

    Args:
        cfg (Config): Changed in place: ``num_classes`` wherever the model has
            it, and ``topk`` of metrics where it is too large then.
        num_classes (int): Number of classes.

    Raises:
        InputError: If it is not a positive integer.
    """
    if not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(
            f'num_classes is a positive integer, got {num_classes!r}')
    for node in _dicts(cfg.model):
        if 'num_classes' in node:
            node['num_classes'] = num_classes
    for part in ('val', 'test'):
        for metric in _dicts(cfg.get(f'{part}_evaluator')):
            if isinstance(metric.get('topk'), (list, tuple)):
                metric['topk'] = tuple(
                    k for k in metric['topk'] if k <= num_classes)


def use_class_folders(cfg, parts):
    """Check the class folders of data in ImageNet's layout, and name classes.

    Where they are not the thousand of ImageNet, the classes are called like
    their folders, unless the config has names for them.

    Args:
        cfg (Config): Changed in place.
        parts (Sequence[str]): Of ``'train'``, ``'val'`` and ``'test'``.

    Raises:
        InputError: If the model tells another number of classes apart, or the
            parts have different folders: labels are their alphabetical rank.
    """
    first = None
    for folder, dataset in _folder_datasets(cfg, parts):
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        _check_number(folder, len(names), cfg.model)
        first = first or (folder, names)
        if names != first[1]:
            differing = sorted(set(names) ^ set(first[1]))
            raise InputError(
                f'{first[0]} and {folder} need the same class folders, only '
                f'one of them has {differing[:4]}. An empty folder is enough.')
        if len(names) != 1000 and not dataset.get('classes'):
            dataset.metainfo = {
                'classes': names, **(dataset.get('metainfo') or {})}


def _check_number(folder, found, model):
    expected = (model.get('head') or {}).get('num_classes', found)
    if found != expected:
        raise InputError(
            f'{folder} has {found} class folders, the model of the config '
            f'tells {expected} classes apart.\n'
            '  - to train on the classes of these folders, add --cfg-options '
            f'num_classes={found}\n'
            '  - otherwise the data set is not complete')


def _folder_datasets(cfg, parts):
    """Data sets whose labels are folders, with the parent folder."""
    for part in parts:
        for dataset in leaf_datasets((cfg.get(f'{part}_dataloader')
                                      or {}).get('dataset', {})):
            split = dataset.get('split')
            root = dataset.get('data_root') or ''
            prefix = dataset.get('data_prefix') or split or ''
            if isinstance(prefix, dict):
                prefix = prefix.get('img_path') or ''
            folder = Path(join_root(root, prefix))
            if (str(dataset.get('type')).endswith('ImageNet')
                    and not dataset.get('ann_file') and folder.is_dir()
                    and not Path(root, 'meta', f'{split}.txt').exists()):
                yield folder, dataset


def _dicts(node):
    """Every dict inside nested dicts and lists."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from _dicts(item)
