"""Comparing a training run with the checkpoint that it resumes from."""
import ast
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_world_size

from ..errors import InputError

# Settings of data sets that may differ: where they are, and how they are read
FREE_KEYS = ('data_root', 'pipeline', 'backend_args', 'serialize_data', 'lazy_init',
             'max_refetch', 'palette', 'sampler_seed')


def record_processes(cfg: Config) -> None:
    """Write the number of processes into a config, and so into its checkpoints.

    Args:
        cfg (Config): Changed in place. The processes have been joined.
    """
    cfg.num_processes = get_world_size()


def check_same_training(cfg: Config, checkpoint: Mapping[str, Any], path: str) -> None:
    """Check that a run is the training that a checkpoint belongs to.

    Compared are total batch size, optimizer, schedule and training data. MMEngine
    ignores changes of most of them.

    Args:
        cfg (Config): Config of the run.
        checkpoint (Mapping): The checkpoint.
        path (str): Where it came from, for the message.

    Raises:
        InputError: If they differ, with the differences.
    """
    text = (checkpoint.get('meta') or {}).get('cfg')
    if not isinstance(text, str):
        return  # not of MMEngine 0.2 or later
    before = _summary(_parse_config(text))
    now = _summary(_parse_config(cfg.pretty_text))
    processes = [each.pop('processes') for each in (before, now)]
    if None not in processes:
        for each, count in zip((before, now), processes):
            each['total batch size'] = each.pop('batch size') * count
    old, new = (dict(_leaves(each)) for each in (before, now))
    differences = [
        f'{key} was {old.get(key, "not set")}, is {new.get(key, "not set")}'
        for key in dict.fromkeys((*old, *new)) if old.get(key) != new.get(key)]
    if differences:
        raise InputError(
            f'{path} belongs to a training with other settings:\n  '
            + '\n  '.join(differences[:8]) + '\n'
            '  - to continue that training, set them as they were\n'
            '  - to go on with the new ones, add --allow-changes to --resume\n'
            '  - to start a new training from its weights, leave --resume out and add '
            f'--cfg-options load_from={path}')


def _summary(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What a training must have in common with its continuation."""
    loader, wrapper = cfg['train_dataloader'], cfg.get('optim_wrapper') or {}
    batch = loader.get('batch_size') or (loader.get('batch_sampler') or {}).get(
        'batch_size', 1)
    length = {key: (cfg.get('train_cfg') or {}).get(key)
              for key in ('max_epochs', 'max_iters')}
    return {
        'processes': cfg.get('num_processes'),
        'batch size': batch * wrapper.get('accumulative_counts', 1),
        'train_cfg': length,
        'optimizer': wrapper.get('optimizer'),
        'paramwise_cfg': wrapper.get('paramwise_cfg'),
        'auto_scale_lr': (cfg.get('auto_scale_lr') or {}).get('enable', False),
        'param_scheduler': cfg.get('param_scheduler'),
        'training data': _without_free_keys(loader.get('dataset')),
    }


def _without_free_keys(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _without_free_keys(value) for key, value in node.items()
                if key not in FREE_KEYS}
    if isinstance(node, list):
        return [_without_free_keys(item) for item in node]
    return node


def _leaves(node: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """Dotted names and values inside nested dicts and lists of dicts."""
    if isinstance(node, list) and any(isinstance(item, dict) for item in node):
        node = dict(enumerate(node))
    if not isinstance(node, dict):
        yield name, node
        return
    for key, value in node.items():
        yield from _leaves(value, f'{name}.{key}' if name else str(key))


def _parse_config(text: str) -> dict[str, Any]:
    """Read the text of a config without executing it."""
    return {node.targets[0].id: _value(node.value) for node in ast.parse(text).body
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)}


def _value(node: ast.expr) -> Any:
    """Value of an expression of literals and ``dict(...)``; others as text."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'dict':
        return {word.arg: _value(word.value) for word in node.keywords}
    if isinstance(node, ast.Dict):
        return {ast.unparse(key) if key else '**': _value(value)
                for key, value in zip(node.keys, node.values)}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except ValueError:
        return ast.unparse(node)
