"""Distributed training without GPUs."""
from typing import Any

from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from torch import nn


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """``MMDistributedDataParallel`` for models on the CPU.

    SyncBN needs a GPU, so its layers are reverted to plain batch norms, as MMEngine
    does in non-distributed runs.

    Args:
        module (nn.Module): The model, on the CPU.
        device_ids (list, optional): Ignored. MMEngine's runner passes a GPU, the CPU
            needs None. Defaults to None.
        broadcast_buffers (bool): Whether to copy rank 0's buffers before each
            forward pass. Defaults to False, as in MMEngine's runner.
        find_unused_parameters (bool): Whether to search each graph for
            parameters without gradient. Defaults to False.

    Raises:
        ValueError: If ``module`` is not on the CPU.
    """

    def __init__(self,
                 module: nn.Module,
                 device_ids: Any = None,
                 broadcast_buffers: bool = False,
                 find_unused_parameters: bool = False) -> None:
        devices = {parameter.device.type for parameter in module.parameters()}
        if devices - {'cpu'}:
            raise ValueError(
                f'{type(self).__name__} expects a model on the CPU, got one on '
                f'{sorted(devices)}: remove model_wrapper_cfg from the config')
        super().__init__(
            module=revert_sync_batchnorm(module),
            device_ids=None,
            broadcast_buffers=broadcast_buffers,
            find_unused_parameters=find_unused_parameters)
