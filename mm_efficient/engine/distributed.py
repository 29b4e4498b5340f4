"""Distributed runs on machines without a GPU."""
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """``MMDistributedDataParallel`` for models on the CPU.

    Synchronised batch normalisation exists on GPUs only, so its layers are
    reverted to plain ones, as MMEngine does in runs that are not distributed.

    Args:
        module (nn.Module): The model, on the CPU.
        device_ids (list, optional): Ignored: MMEngine's runner names a GPU
            here, the CPU needs None. Defaults to None.
        broadcast_buffers (bool): Whether to copy rank 0's buffers before each
            forward pass. Defaults to False, as in MMEngine's runner.
        find_unused_parameters (bool): Whether to search each graph for
            parameters without gradient. Defaults to False.

    Raises:
        ValueError: If ``module`` is not on the CPU.
    """

    def __init__(self,
                 module,
                 device_ids=None,
                 broadcast_buffers=False,
                 find_unused_parameters=False):
        devices = {parameter.device.type for parameter in module.parameters()}
        if devices - {'cpu'}:
            raise ValueError(
                f'{type(self).__name__} wraps models on the CPU, got one on '
                f'{sorted(devices)}: remove model_wrapper_cfg from the config')
        super().__init__(
            module=revert_sync_batchnorm(module),
            device_ids=None,
            broadcast_buffers=broadcast_buffers,
            find_unused_parameters=find_unused_parameters)
