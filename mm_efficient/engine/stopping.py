"""Ending a training in order on Ctrl-C, SIGTERM or SIGUSR1, and going on from there."""
import mmap
import os
import signal
import threading
import time
from collections.abc import Iterator
from itertools import islice
from types import FrameType
from typing import Any

import torch
from mmengine.dist import all_reduce, barrier, get_rank, is_distributed
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner

from ..errors import StoppedError
from .checkpoints import WholeCheckpointHook

SIGNALS = tuple(getattr(signal, name) for name in ('SIGINT', 'SIGTERM', 'SIGUSR1')
                if hasattr(signal, name))  # Slurm: sbatch --signal=USR1@120
GRACE = 1.  # seconds in which a second signal is the same one, sent on by a launcher


class SignalWatch:
    """Context that notes the signals which ask a process to end.

    A second signal ends it at once. Outside of the main thread it does nothing.

    Attributes:
        signum (int | None): The first signal, if there was one.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.since = 0.
        self.owner = os.getpid()
        self.over = mmap.mmap(-1, 1)  # shared with the processes forked from this one
        self.before: dict[int, Any] = {}

    def __enter__(self) -> 'SignalWatch':
        if threading.current_thread() is threading.main_thread():
            self.before = {signum: signal.signal(signum, self.note)
                           for signum in SIGNALS}
        return self

    def __exit__(self, *error: Any) -> None:
        self.over[0] = 1
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        self.before = {}

    def note(self, signum: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if os.getpid() != self.owner:  # a process that loads data, forked from this one
            # Terminals and Slurm signal all processes, but it is still needed
            if signum == signal.SIGTERM and (self.over[0] or
                                             os.getppid() != self.owner):
                os._exit(128 + signum)
            return
        if self.signum is None:
            self.signum, self.since = signum, time.monotonic()
            self.say(f'{signal.Signals(signum).name}: stopping after this iteration '
                     'and its checkpoint; once more stops at once')
        elif time.monotonic() - self.since > GRACE:
            self.say('Stopped at once.')
            os._exit(128 + (signum if signum == signal.SIGINT else signal.SIGTERM))

    @staticmethod
    def say(text: str) -> None:
        """Write a line that cannot interfere with other output."""
        if get_rank() == 0:
            os.write(2, f'\n{text}\n'.encode())


@HOOKS.register_module()
class StopHook(Hook):
    """End a training with a checkpoint when a signal asks for it, and go on later.

    Looks after every iteration whether any process has received SIGINT, SIGTERM or
    SIGUSR1. Then all stop at the same iteration, or after the validation that follows
    it, with a checkpoint written by :class:`WholeCheckpointHook`. If that was within an
    epoch, the resumed run skips the batches that were trained on.
    """

    priority = 'LOWEST'  # after the checkpoint and the averages of the iteration

    def __init__(self) -> None:
        self.watch: SignalWatch | None = None

    def before_train_epoch(self, runner: Runner) -> None:
        """Skip the batches before the iteration that was resumed."""
        loop = runner.train_loop
        if not isinstance(loop, EpochBasedTrainLoop):
            return
        loader = loop.dataloader
        done = runner.iter - runner.epoch * len(loader)
        if 0 < done <= len(loader):
            # DataLoader does not allow to set it, but looks it up when it starts
            vars(loader)['batch_sampler'] = RestOfEpoch(loader.batch_sampler, done)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None,
                         outputs: Any = None) -> None:
        """Stop here, unless the epoch ends, a validation follows or gradients wait."""
        loop, done = runner.train_loop, runner.iter + 1
        if not self._asked_to_stop():
            return
        if isinstance(loop, EpochBasedTrainLoop):
            waits = (done - runner.epoch * len(loop.dataloader)) >= len(loop.dataloader)
        else:
            waits = done >= runner.max_iters or _validates(runner, done)
        wrapper = runner.optim_wrapper
        counts = getattr(wrapper, '_accumulative_counts', 1)
        if not waits and getattr(wrapper, '_inner_count', 0) % counts == 0:
            self._stop(runner, runner.epoch, done)

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop here, unless a validation follows."""
        done = runner.epoch + 1
        if isinstance(runner.train_loop, EpochBasedTrainLoop) and \
                done < runner.max_epochs and not _validates(runner, done) and \
                self._asked_to_stop():
            self._stop(runner, done, runner.iter)

    def after_val_epoch(self, runner: Runner,
                        metrics: dict[str, float] | None = None) -> None:
        """Stop here, unless the training is complete."""
        if self.watch and runner.iter < runner.max_iters and self._asked_to_stop():
            self._stop(runner, runner.epoch, runner.iter)

    def _asked_to_stop(self) -> bool:
        signum = (self.watch.signum if self.watch else None) or 0
        if not is_distributed():
            return bool(signum)
        received = torch.tensor(signum)
        all_reduce(received, 'max')
        if self.watch and received:
            self.watch.signum = int(received)
        return bool(received)

    def _stop(self, runner: Runner, epoch: int, iteration: int) -> None:
        hooks = [hook for hook in runner.hooks if isinstance(hook, WholeCheckpointHook)]
        saved = 'there is no hook that writes checkpoints'
        if hooks:
            path = hooks[0].save_interrupted(runner, epoch, iteration)
            saved = f'its checkpoint is {path}'
        elif any(isinstance(hook, CheckpointHook) for hook in runner.hooks):
            saved = 'the last checkpoint is the one to resume from'
        barrier()  # a launcher ends all processes when the first one exits
        signum = self.watch.signum if self.watch else None
        name = signal.Signals(signum or signal.SIGTERM).name
        raise StoppedError(f'Stopped by {name} after iteration {iteration}: {saved}.'
                           if get_rank() == 0 else '', signum or signal.SIGTERM)


def _validates(runner: Runner, done: int) -> bool:
    """Whether a validation follows after ``done`` epochs or iterations."""
    loop = runner.train_loop
    last = runner.max_epochs if isinstance(loop, EpochBasedTrainLoop) else \
        runner.max_iters
    return (runner.val_loop is not None and done >= loop.val_begin
            and (done % loop.val_interval == 0 or done == last))


class RestOfEpoch:
    """A batch sampler that leaves out its first batches, once.

    Args:
        batches (Any): The batch sampler.
        skipped (int): How many batches to leave out.
    """

    def __init__(self, batches: Any, skipped: int) -> None:
        self.batches = batches
        self.skipped = skipped

    def __iter__(self) -> Iterator[Any]:
        skipped, self.skipped = self.skipped, 0
        return islice(iter(self.batches), skipped, None)

    def __len__(self) -> int:
        return len(self.batches)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['batches'], name)
