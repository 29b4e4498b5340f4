"""Joining the processes of a run, and work that one of them does for all."""
import contextlib
import os
from collections.abc import Callable, Iterator
from typing import TypeVar
from unittest import mock

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.dist import all_gather_object, init_dist, is_distributed
from mmengine.utils.dl_utils import set_multi_processing

from ..errors import ExecutionError, InputError, ReportedError, explain

T = TypeVar('T')

# Environment variable with the rank of a process on its machine, by launcher
LOCAL_RANK = dict(
    pytorch='LOCAL_RANK', slurm='SLURM_LOCALID', mpi='OMPI_COMM_WORLD_LOCAL_RANK')

# Environment variables that a launcher sets for every process
ENVIRONMENT = dict(
    pytorch=('RANK', 'LOCAL_RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'),
    slurm=('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'),
    mpi=('OMPI_COMM_WORLD_LOCAL_RANK', 'OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE',
         'MASTER_ADDR'))
RANK_AND_SIZE = dict(
    pytorch=('RANK', 'WORLD_SIZE'), slurm=('SLURM_PROCID', 'SLURM_NTASKS'),
    mpi=('OMPI_COMM_WORLD_RANK', 'OMPI_COMM_WORLD_SIZE'))
STARTED_BY = dict(
    pytorch='tools/dist_train.sh or dist_test.sh (torchrun)',
    slurm='tools/slurm_train.sh or slurm_test.sh (srun)', mpi='mpirun of Open MPI')


def check_environment(launcher: str) -> None:
    """Check that a launcher has started this process.

    Args:
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        InputError: If its variables are missing, no numbers or out of range.
    """
    names = ENVIRONMENT.get(launcher, ())
    missing = [name for name in names if not os.environ.get(name)]
    wrong = [f'{name}={os.environ[name]}' for name in names if name not in missing
             and name not in ('MASTER_ADDR', 'SLURM_NODELIST')
             and not os.environ[name].isdecimal()]
    reason = ''
    if missing or wrong:
        reason = f'does not have {", ".join(missing)}' if missing else \
            f'has {", ".join(wrong)}, expected numbers'
    elif launcher in RANK_AND_SIZE:
        rank, size = RANK_AND_SIZE[launcher]
        if int(os.environ[rank]) >= int(os.environ[size]):
            reason = (f'has {rank}={os.environ[rank]}, expected less than '
                      f'{size}={os.environ[size]}')
        port = os.environ.get('MASTER_PORT', '0')
        if not port.isdecimal() or int(port) > 65535:
            reason = f'has MASTER_PORT={port}, expected 1 to 65535'
    if reason:
        raise InputError(
            f'--launcher {launcher}: the environment {reason}. Start the processes '
            f'with {STARTED_BY[launcher]}, or leave --launcher out for a single one.')


def join_processes(cfg: Config, launcher: str) -> None:
    """Join the other processes of a run, on machines with and without a GPU.

    Call it before the runner is built, which then finds the processes connected. With
    a GPU this does what the runner would do. Without one, MMEngine's own start fails
    (it selects a CUDA device whatever the backend), so gloo connects the processes
    and the model is wrapped for the CPU.

    Args:
        cfg (Config): Config of the run. ``launcher`` is set, and on the CPU
            ``model_wrapper_cfg`` unless the config has one.
        launcher (str): 'none' (a single process), 'pytorch', 'slurm' or 'mpi'.

    Raises:
        ExecutionError: If they cannot be connected.
    """
    cfg.launcher = launcher
    if launcher == 'none' or is_distributed():
        return
    if launcher == 'mpi':  # MMEngine sets it for Slurm, torchrun for itself
        os.environ['LOCAL_RANK'] = os.environ[LOCAL_RANK['mpi']]
    env_cfg = cfg.get('env_cfg') or {}
    dist_cfg = dict(env_cfg.get('dist_cfg') or {})
    # In the runner's order: init_dist would settle on a start method.
    set_multi_processing(**(env_cfg.get('mp_cfg') or {}), distributed=True)
    joining = explain('the processes cannot be connected', 'Check MASTER_ADDR, '
                      'MASTER_PORT (PORT of tools/dist_train.sh) and env_cfg.dist_cfg.')
    if get_device() != 'cpu':
        with joining:
            init_dist(launcher, **dist_cfg)
        return
    dist_cfg['backend'] = 'gloo'
    with joining, mock.patch.object(torch.cuda, 'set_device'):
        init_dist(launcher, **dist_cfg)
    if cfg.get('model_wrapper_cfg') is None:
        cfg.model_wrapper_cfg = dict(
            type='CPUDistributedDataParallel',
            find_unused_parameters=cfg.get('find_unused_parameters', False))


def once_per_machine(function: Callable[[], T]) -> T:
    """Call a function in the first process of every machine, while the others wait.

    The processes must have been joined. ``function`` must not communicate with other
    processes. A long call, such as a slow download, may need a longer
    ``env_cfg.dist_cfg.timeout`` (seconds).

    Args:
        function (Callable): Takes no arguments; its result can be pickled.

    Returns:
        T: What it returned in the main process, in every process.

    Raises:
        ReportedError: If ``function`` raised in another process. The process in which
            it raised gets the original exception.
    """
    if not is_distributed():
        return function()
    result, error = None, None
    if os.environ.get('LOCAL_RANK', '0') == '0':
        try:
            result = function()
        except Exception as raised:  # any exception: the others must not keep waiting
            error = raised
    reason = error and f'{type(error).__name__}: {error}'
    outcomes = all_gather_object((result, reason))
    if error:
        raise error
    for rank, (_, reason) in enumerate(outcomes):
        if reason:
            raise ReportedError(f'process {rank} has failed: {reason}')
    return outcomes[0][0]


@contextlib.contextmanager
def first_process_reports(launcher: str) -> Iterator[None]:
    """Context for work that all processes do alike, so that one reports its errors.

    The processes need not have been joined.

    Args:
        launcher (str): 'none', 'pytorch', 'slurm' or 'mpi'.

    Raises:
        ReportedError: In place of an :class:`InputError` or :class:`ExecutionError`
            in all but the first process of every machine.
    """
    try:
        yield
    except (InputError, ExecutionError) as error:
        if os.environ.get(LOCAL_RANK.get(launcher, ''), '0') == '0':
            raise
        raise ReportedError(f'the first process has failed: {error}') from None
