"""Training on classes other than those of the config."""
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmengine.config import Config

from ..errors import InputError
from ..files import join_root
from .traversal import nested_dicts, split_datasets

IMAGENET_CLASSES = 1000


def set_num_classes(cfg: Config, num_classes: int) -> None:
    """Set the number of classes of every head.

    Args:
        cfg (Config): Changed in place: every ``num_classes`` of the model, and
            ``topk`` of metrics that ask for more classes than there are.
        num_classes (int): Number of classes.

    Raises:
        InputError: If it is not a positive integer.
    """
    if not isinstance(num_classes, int) or num_classes < 1:
        raise InputError(
            f'num_classes must be a positive integer, got {num_classes!r}.')
    for node in nested_dicts(cfg.model):
        if 'num_classes' in node:
            node['num_classes'] = num_classes
    for split in ('val', 'test'):
        for metric in nested_dicts(cfg.get(f'{split}_evaluator')):
            if isinstance(metric.get('topk'), (list, tuple)):
                metric['topk'] = tuple(
                    k for k in metric['topk'] if k <= num_classes)


def check_class_folders(cfg: Config, splits: Sequence[str]) -> list[str]:
    """Check the class folders of data in ImageNet's layout.

    Args:
        cfg (Config): Config of a run, not changed.
        splits (Sequence[str]): Any of 'train', 'val' and 'test'.

    Returns:
        list[str]: Names of the folders, in the order of the labels. Empty if no
        split takes its labels from folders.

    Raises:
        InputError: If the number of folders differs from the model's
            ``num_classes``, or the folders differ between splits: labels are their
            alphabetical ranks.
    """
    first: tuple[Path, list[str]] | None = None
    for folder, _ in _folder_datasets(cfg, splits):
        names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        _check_number(folder, len(names), cfg.model)
        first = first or (folder, names)
        if names != first[1]:
            differing = sorted(set(names) ^ set(first[1]))
            raise InputError(
                f'{first[0]} and {folder} must have the same class folders, but '
                f'{differing[:4]} are in one of them only. Add the missing ones; '
                'they may be empty.')
    return first[1] if first else []


def set_class_names(cfg: Config, splits: Sequence[str], names: Sequence[str]) -> None:
    """Name classes after their folders.

    Args:
        cfg (Config): Changed in place, except where it names the classes itself or
            there are 1000 of them: those are ImageNet's, with readable names.
        splits (Sequence[str]): Any of 'train', 'val' and 'test'.
        names (Sequence[str]): From :func:`check_class_folders`.
    """
    if len(names) == IMAGENET_CLASSES:
        return
    for _, dataset in _folder_datasets(cfg, splits):
        if not dataset.get('classes'):
            dataset['metainfo'] = {
                'classes': list(names), **(dataset.get('metainfo') or {})}


def _check_number(folder: Path, found: int, model: dict) -> None:
    expected = (model.get('head') or {}).get('num_classes', found)
    if found != expected:
        raise InputError(
            f'{folder} has {found} class folders, but the model has '
            f'num_classes={expected}.\n'
            f'  - to train on the classes of these folders, add --num-classes {found}\n'
            '  - otherwise the data set is incomplete')


def _folder_datasets(cfg: Config, splits: Sequence[str]
                     ) -> Iterator[tuple[Path, dict]]:
    """Data sets that take their labels from folders, with the parent folder."""
    for split in splits:
        for dataset in split_datasets(cfg, split):
            root = dataset.get('data_root') or ''
            prefix = dataset.get('data_prefix') or dataset.get('split') or ''
            if isinstance(prefix, dict):
                prefix = prefix.get('img_path') or ''
            folder = Path(join_root(root, prefix))
            listed = Path(root, 'meta', f'{dataset.get("split")}.txt').exists()
            if (str(dataset.get('type')).endswith('ImageNet') and not listed
                    and not dataset.get('ann_file') and folder.is_dir()):
                yield folder, dataset
