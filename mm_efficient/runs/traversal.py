"""Finding things inside configs of any shape."""
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

SPLITS = ('train', 'val', 'test')


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
    evaluator = cfg.get(f'{split}_evaluator') or []
    return list(evaluator) if isinstance(evaluator, (list, tuple)) else [evaluator]
