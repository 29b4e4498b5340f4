"""Building a runner."""
import time

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..errors import InputError, explain


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config.

    Args:
        cfg (Config): From :func:`~mm_efficient.runs.prepare_training` or
            :func:`~mm_efficient.runs.prepare_testing`.

    Returns:
        Runner: Ready to train or to test; its work dir has been created.
    """
    if isinstance(cfg.get('visualizer'), dict):
        # MMEngine keeps visualizers by name: a second run in this process would write
        # to the folder of the first.
        cfg.visualizer['name'] = f'visualizer_{time.time_ns()}'
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def build_optimizer(runner: Runner) -> None:
    """Build the optimizer and its schedules, as training does at first.

    Args:
        runner (Runner): Of a training run. A ``FlexibleRunner`` builds its own later.

    Raises:
        ExecutionError: If they cannot be built, with the part of the config.
    """
    if not isinstance(runner, Runner):
        return
    with explain('optim_wrapper of the config cannot be built'):
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
    # The runner scales the learning rate before it builds the schedules
    scales = (runner.auto_scale_lr or {}).get('enable', False)
    if runner.param_schedulers is not None and not scales:
        with explain('param_scheduler of the config cannot be built'):
            runner.param_schedulers = runner.build_param_scheduler(
                runner.param_schedulers)


def check_num_batches(runner: Runner) -> None:
    """Check that an epoch of training has at least one batch.

    Args:
        runner (Runner): Builds its data loader, if it has not yet.

    Raises:
        InputError: If there are fewer images than a batch needs.
    """
    loader = runner.train_dataloader
    if len(loader) == 0:
        batch = runner.cfg.train_dataloader.get('batch_size')
        raise InputError(
            f'{len(loader.dataset)} training images are fewer than a batch, {batch} in '
            f'each of {runner.world_size} processes, and incomplete batches are '
            'dropped (drop_last). Set a smaller one with --cfg-options '
            'train_dataloader.batch_size=N.')
