"""Check and read the checkpoints of a run."""
import os.path as osp
import zipfile
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..files import is_local


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
    try:
        # As MMEngine does when it loads it: there are more than tensors in it
        checkpoint = torch.load(path, map_location='cpu', weights_only=False,
                                mmap=zipfile.is_zipfile(path))
    except Exception as error:  # unpickling can fail in any way
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
