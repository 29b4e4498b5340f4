"""Hooks of the training loop."""
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from .seeding import seed_everything

# Keeps the random numbers of the model apart from those of the samples.
_MODEL_STREAM = 0x6D6F64656C


@HOOKS.register_module()
class SeedIterationHook(Hook):
    """Make the randomness of each training iteration follow from its number.

    Drop path, dropout, proposal sampling and mixup then take the same values in
    a resumed training as in an uninterrupted one. The samples are the business
    of :class:`mm_efficient.datasets.seeding.SeededSampler`.
    """

    priority = 'VERY_HIGH'  # before any hook that might draw random numbers

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        """Seed Python, NumPy and PyTorch for the coming iteration."""
        seed_everything(_MODEL_STREAM, runner.seed, get_rank(), runner.iter)


@HOOKS.register_module()
class AccumulationRestartHook(Hook):
    """Begin every epoch with a new accumulation of gradients.

    Gradients of iterations that are left over at the end of an epoch are dropped, so
    that an epoch does not depend on the one before, and a training resumed from its
    checkpoint goes on as if uninterrupted: checkpoints hold no gradients. For
    ``optim_wrapper=dict(accumulative_counts=...)``.
    """

    def before_train_epoch(self, runner):
        """Drop what is left, and count anew."""
        wrapper = runner.optim_wrapper
        wrapper.zero_grad()
        # Not by initialize_count_status, which warns of batch norms every time
        wrapper._inner_count = 0
        wrapper._max_counts = -1  # no early update at the end of the training
