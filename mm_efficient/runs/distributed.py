"""Joining the processes of a run, with or without a GPU."""
from unittest import mock

import torch
from mmengine.device import get_device
from mmengine.dist import init_dist, is_distributed
from mmengine.utils.dl_utils import set_multi_processing


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
