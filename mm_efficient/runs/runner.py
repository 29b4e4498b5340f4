"""Building a runner."""
from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..errors import InputError


def build_runner(cfg: Config) -> Runner:
    """Build the runner of a config.

    Args:
        cfg (Config): From :func:`~mm_efficient.runs.prepare_training` or
            :func:`~mm_efficient.runs.prepare_testing`.

    Returns:
        Runner: Ready to train or to test; its work dir has been created.
    """
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


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
