"""What several families share."""
import contextlib
from contextlib import AbstractContextManager

import torch
from torch import Tensor


def autocast_disabled(x: Tensor) -> AbstractContextManager:
    """Context in which nothing is cast to half precision on ``x``'s device.

    Args:
        x (Tensor): Any tensor of the computation.

    Returns:
        AbstractContextManager: Disables autocast; does nothing on the meta device,
        which has none.
    """
    if x.device.type == 'meta':
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, enabled=False)


def at_least_float32(x: Tensor) -> Tensor:
    """``x`` in float32 if it is in half precision, else unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
