"""Check and read the checkpoints of a run."""
import os
import os.path as osp
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..files import is_local
from .reading import find_damage, read_safetensors

FORCED = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'  # environment variable of PyTorch


def check_checkpoint(path: str, resume: bool = False) -> dict[str, Any] | None:
    """Check that a checkpoint can be read, and read it.

    Args:
        path (str): Local path; anything with a scheme is left to MMEngine.
        resume (bool): Whether to resume training from it. Defaults to False.

    Returns:
        dict | None: The checkpoint on the CPU, None if it is not a local file. Tensors
        are read from the file when used.

    Raises:
        InputError: If it is missing, truncated or of the wrong kind.
    """
    if not is_local(path):
        return None
    if not osp.isfile(path):
        raise InputError(f'Checkpoint {path} does not exist '
                         f'(current folder: {Path.cwd()}).')
    damage = find_damage(path)
    if damage:
        raise InputError(f'Checkpoint {path}: {damage}')
    try:
        if path.endswith('.safetensors'):
            return dict(read_safetensors(path))
        # As MMEngine does when it loads it: there are more than tensors in it
        checkpoint = torch.load(path, map_location='cpu', weights_only=False,
                                mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling can fail in any way
        if os.environ.get(FORCED, '0').lower() in ('1', 'y', 'yes', 'true'):
            raise InputError(
                f'Checkpoint {path} holds more than tensors, as all checkpoints of '
                f'MMEngine do, and {FORCED} is set, with which PyTorch refuses them. '
                'Unset it if you trust the origin of the file.') from None
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise InputError(
            f'Checkpoint {path} ({osp.getsize(path)} bytes) cannot be read, it '
            f'is truncated or not a PyTorch file: {reason}') from None
    if not isinstance(checkpoint, dict):
        raise InputError(f'Checkpoint {path} holds a '
                         f'{type(checkpoint).__name__}, expected a dict.')
    if resume and not {'meta', 'state_dict', 'optimizer'} <= set(checkpoint):
        raise InputError(
            f'Checkpoint {path} has no training state to resume from (keys '
            f'{list(checkpoint)[:6]}). To start from its weights, use '
            f'--cfg-options load_from={path} instead of --resume.')
    return checkpoint
