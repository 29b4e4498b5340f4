"""Finding things inside configs of any shape."""
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

SPLITS = ('train', 'val', 'test')
# Values of a config that are no dict and no object
PLAIN = (bool, int, float, str, list, tuple)


def type_name(settings: Any) -> str:
    """Name of the class that a config builds.

    Args:
        settings (dict): Its ``type`` is a name, with or without scope or module, or
            the class itself, as in new-style configs (``read_base``).

    Returns:
        str: The name alone, '' without ``type``, and for anything but a dict.
    """
    kind = settings.get('type') if isinstance(settings, dict) else None
    return getattr(kind, '__name__', None) or str(kind or '').rpartition('.')[2]


def as_list(value: Any) -> list:
    """A list as it is, anything else but None as a list of one."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def nested_dicts(node: Any) -> Iterator[dict]:
    """Find every dict inside nested dicts, lists and tuples.

    Args:
        node (Any): A config or a part of one.

    Yields:
        dict: The dicts themselves, not copies, the outermost first.
    """
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from nested_dicts(item)


def inner_model(model: dict) -> dict:
    """Find the model with a backbone inside wrappers.

    Args:
        model (dict): Config of a model, or of one around it, such as ``DetTTAModel``
            (its ``module``) or ``SoftTeacher`` (its ``detector``).

    Returns:
        dict: Itself, not a copy; ``model`` if nothing in it has a backbone.
    """
    return next((node for node in nested_dicts(model)
                 if isinstance(node.get('backbone'), dict)), model)


def leaf_datasets(dataset: dict) -> list[dict]:
    """Find the data set configs inside wrappers such as ``RepeatDataset``.

    Args:
        dataset (dict): Config of a data set or of a wrapper.

    Returns:
        list[dict]: The innermost configs themselves, not copies.
    """
    if 'datasets' in dataset:
        return [leaf for d in dataset['datasets'] for leaf in leaf_datasets(d)]
    if 'dataset' in dataset:
        return leaf_datasets(dataset['dataset'])
    return [dataset]


def split_datasets(cfg: Config, split: str) -> list[dict]:
    """List the data set configs of a split, without wrappers.

    Args:
        cfg (Config): Config of a run.
        split (str): 'train', 'val' or 'test'.

    Returns:
        list[dict]: Empty if the config has no such split.
    """
    loader = cfg.get(f'{split}_dataloader')
    return leaf_datasets(loader['dataset']) if loader else []


def split_metrics(cfg: Config, split: str) -> list[dict]:
    """List the metric configs of a split.

    Args:
        cfg (Config): Config of a run.
        split (str): 'train', 'val' or 'test'.

    Returns:
        list[dict]: Empty if the config evaluates nothing on that split.
    """
    evaluator = cfg.get(f'{split}_evaluator') or None
    if isinstance(evaluator, dict) and 'metrics' in evaluator:
        evaluator = evaluator['metrics']
    return as_list(evaluator)
