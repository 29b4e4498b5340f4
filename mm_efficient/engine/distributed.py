"""Distributed runs on machines without a GPU."""
from unittest import mock

import torch
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from mmengine.utils.dl_utils import set_multi_processing


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


def init_distributed(cfg):
    """Join the other processes of a run, on machines with and without a GPU.

    To be called before the runner is built, which then finds the processes
    connected. With a GPU this does what the runner would do. Without one,
    MMEngine's own start fails (it selects a CUDA device whatever the
    backend), so gloo connects the processes and the model is wrapped for the
    CPU.

    Args:
        cfg (Config): Config of the run. ``launcher`` ('none', 'pytorch',
            'slurm' or 'mpi') says where rank and world size are found;
            ``model_wrapper_cfg`` is set on the CPU, unless the config has one.
    """
    launcher = cfg.get('launcher', 'none')
    if launcher == 'none' or is_distributed():
        return
    env_cfg = cfg.get('env_cfg') or {}
    dist_cfg = dict(env_cfg.get('dist_cfg') or {})
    # In the runner's order: init_dist would settle on a start method.
    set_multi_processing(**(env_cfg.get('mp_cfg') or {}), distributed=True)
    if get_device() != 'cpu':
        init_dist(launcher, **dist_cfg)
        return
    dist_cfg['backend'] = 'gloo'
    with mock.patch.object(torch.cuda, 'set_device'):
        init_dist(launcher, **dist_cfg)
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='CPUDistributedDataParallel',
            find_unused_parameters=cfg.get('find_unused_parameters', False))
