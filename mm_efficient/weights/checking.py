"""Check and read the checkpoints of a run."""
import os.path as osp
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import is_local
from .unpickling import load_plain

TRAINING_STATE = dict(meta=Mapping, state_dict=Mapping, optimizer=Mapping,
                      message_hub=Mapping)


def check_checkpoint(path: str, resume: bool = False) -> dict[str, Any] | None:
    """Check that a checkpoint can be read, and read it.

    Args:
        path (str): Local path; anything with a scheme is left to MMEngine.
        resume (bool): Whether to resume training from it. Defaults to False.

    Returns:
        dict | None: The checkpoint on the CPU, None if it is not a local file. Tensors
        are read from the file when used.

    Raises:
        InputError: If it is missing, truncated or of the wrong kind, or holds more than
            tensors and plain data.
    """
    if not is_local(path):
        return None
    if osp.isdir(path):
        raise InputError(f'Checkpoint {path} is a folder; expected a file, such as '
                         'epoch_12.pth in a work dir.'
                         + resume * (f' To continue from the latest one in {path}: '
                                     f'--work-dir {path} --resume'))
    if not osp.isfile(path):
        raise InputError(f'Checkpoint {path} does not exist '
                         f'(current folder: {Path.cwd()}).')
    checkpoint = load_plain(
        path, mmap=True, name=f'Checkpoint {path} ({osp.getsize(path)} bytes)')
    if not isinstance(checkpoint, dict):
        raise InputError(f'Checkpoint {path} holds a '
                         f'{type(checkpoint).__name__}, expected a dict.')
    if not isinstance(checkpoint.get('state_dict', checkpoint), Mapping):
        raise InputError(f'Checkpoint {path}: expected tensors by name in state_dict, '
                         f'got {checkpoint["state_dict"]!r:.40}.')
    if resume:
        _check_training_state(checkpoint, path)
    return checkpoint


def _check_training_state(checkpoint: Mapping[str, Any], path: str) -> None:
    meta = checkpoint.get('meta')
    faults = [key for key, kind in TRAINING_STATE.items()
              if not isinstance(checkpoint.get(key), kind)]
    if isinstance(meta, Mapping):
        faults += [f'meta.{key}' for key in ('epoch', 'iter')
                   if not isinstance(meta.get(key), int)]
    optimizer = checkpoint.get('optimizer')
    groups = optimizer.get('param_groups') if isinstance(optimizer, Mapping) else []
    if not isinstance(groups, list) or not all(
            isinstance(group, Mapping) and 'params' in group for group in groups):
        faults.append('optimizer.param_groups')
    elif isinstance(optimizer, Mapping) and not isinstance(
            optimizer.get('state', {}), Mapping):
        faults.append('optimizer.state')
    if not isinstance(checkpoint.get('param_schedulers', []), (list, Mapping)):
        faults.append('param_schedulers')
    if faults:
        raise InputError(
            f'Checkpoint {path} has no training state to resume from: it lacks '
            f'{", ".join(faults)} (keys {list(checkpoint)[:6]}). To start from its '
            f'weights, use --cfg-options load_from={path} instead of --resume.')
