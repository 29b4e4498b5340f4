"""Checkpoints that are complete, or not there."""
import os.path as osp
import re
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS
from mmengine.runner import FlexibleRunner, Runner

from ..errors import ExecutionError
from ..files import remove_drafts, whole_file

LAST = 'last_checkpoint'  # file in the work dir, with the name of the newest checkpoint
BACKEND = 'mm_efficient.whole_local'
_BEST = re.compile('best_ckpt(_.+)?')  # keys of MMEngine's message hub
_INTERRUPTED = 'interrupted_ckpt'


@register_backend(BACKEND, force=True)
class WholeFileBackend(LocalBackend):
    """MMEngine's local files, written whole, and removed only when told to."""

    def __init__(self) -> None:
        self.outdated: list[str] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file beside, and rename it when it is complete."""
        path = Path(filepath)
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as draft:
            draft.write_bytes(obj)

    def remove(self, filepath: str | Path) -> None:
        """Keep a file until :meth:`remove_outdated`."""
        self.outdated.append(str(filepath))

    def remove_outdated(self, *needed: str | None) -> None:
        """Remove what was to be removed, but not what is ``needed``."""
        for path in self.outdated:
            if path not in needed:
                Path(path).unlink(missing_ok=True)
        self.outdated.clear()


@HOOKS.register_module()
class WholeCheckpointHook(CheckpointHook):
    """MMEngine's ``CheckpointHook`` that never leaves a run without a checkpoint.

    MMEngine removes the previous checkpoint, then writes the next one in place. Here
    the next one is written beside and renamed when it is complete; only then previous
    ones are removed. ``last_checkpoint`` is written in the same way, relative to the
    work dir, so that this can be moved. Paths inside a checkpoint are not trusted: the
    best checkpoint is looked for in the folder of this run.

    In other places than local folders, and in runs with MMEngine's strategies, it is
    the stock hook. Arguments are those of ``CheckpointHook``.
    """

    filename_tmpl: str
    max_keep_ckpts: int
    last_ckpt: str | None
    file_backend: Any
    whole = False
    saved_iter = -1

    def before_train(self, runner: Runner) -> None:
        """Choose how to write; forget what other folders hold."""
        info = runner.message_hub.runtime_info
        kept = info.get('keep_ckpt_ids')
        if kept is not None:
            info['keep_ckpt_ids'] = [step for step in kept if isinstance(step, int)]
        super().before_train(runner)
        self.whole = (
            type(self.file_backend) is LocalBackend and self.file_client_args is None
            and not isinstance(runner, FlexibleRunner))
        if not self.whole:
            return
        self.file_backend = WholeFileBackend()
        self.backend_args = dict(backend=BACKEND)
        if self.save_best:
            for key in filter(_BEST.fullmatch, list(info)):
                self._adopt_best(runner, key)
        if is_main_process() and Path(self.out_dir).is_dir():
            remove_drafts(self.out_dir, '.pth')

    def _adopt_best(self, runner: Runner, key: str) -> None:
        """Let a best checkpoint be the file of that name in this run's folder."""
        name = osp.basename(str(runner.message_hub.get_info(key)))
        path = osp.join(self.out_dir, name)
        runner.message_hub.update_info(key, path)
        if hasattr(self, 'best_ckpt_path_dict'):
            self.best_ckpt_path_dict[key.removeprefix('best_ckpt_')] = path
        else:
            self.best_ckpt_path: str | None = path

    def _save_checkpoint_with_step(self, runner: Runner, step: int,
                                   meta: dict[str, Any]) -> None:
        self.saved_iter = meta['iter']
        if not self.whole:
            super()._save_checkpoint_with_step(runner, step, meta)
            return
        hub = runner.message_hub
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            outdated = []
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = [self.keep_ckpt_ids.popleft()]
                self._outdate(self.filename_tmpl.format(*outdated))
            self.keep_ckpt_ids.append(step)
            # A run killed before they are removed does so when it is resumed
            hub.update_info('keep_ckpt_ids', [*outdated, *self.keep_ckpt_ids])
        self._outdate_interrupted(runner)
        self._write(runner, self.filename_tmpl.format(step), meta)
        hub.runtime_info.pop(_INTERRUPTED, None)
        if self.max_keep_ckpts > 0:
            hub.update_info('keep_ckpt_ids', [*self.keep_ckpt_ids])

    def _outdate_interrupted(self, runner: Runner) -> None:
        interrupted = runner.message_hub.runtime_info.get(_INTERRUPTED)
        if interrupted is not None and self.max_keep_ckpts > 0:
            self._outdate(osp.basename(str(interrupted)))

    def _outdate(self, name: str) -> None:
        if name.endswith('.pth'):
            self.file_backend.remove(osp.join(self.out_dir, name))

    def _write(self, runner: Runner, name: str, meta: dict[str, Any]) -> None:
        """Write a checkpoint to resume from, then remove outdated ones."""
        previous, self.last_ckpt = self.last_ckpt, osp.join(self.out_dir, name)
        best = [getattr(self, 'best_ckpt_path', None),
                *getattr(self, 'best_ckpt_path_dict', {}).values()]
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        try:
            runner.save_checkpoint(
                self.out_dir, name, save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler, meta=meta,
                by_epoch=self.by_epoch, backend_args=self.backend_args, **self.args)
            if is_main_process():
                with whole_file(Path(runner.work_dir, LAST)) as draft:
                    draft.write_text(osp.relpath(self.last_ckpt, runner.work_dir))
                self.file_backend.remove_outdated(self.last_ckpt, *best)
        except OSError as error:
            raise _unwritable(self.last_ckpt, error, previous) from error

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        try:
            super()._save_best_checkpoint(runner, metrics)
        except OSError as error:
            raise _unwritable('the best checkpoint', error, self.last_ckpt) from error

    def save_interrupted(self, runner: Runner, epoch: int, iteration: int) -> str:
        """Write the state of a run that is about to stop.

        Args:
            runner (Runner): The runner, which does not go on.
            epoch (int): Completed epochs.
            iteration (int): Completed iterations.

        Returns:
            str: Path of the checkpoint. The next regular one replaces it, unless all
            are kept.
        """
        if self.saved_iter == iteration and self.last_ckpt is not None:
            return self.last_ckpt
        name, meta = f'iter_{iteration}.pth', dict(epoch=epoch, iter=iteration)
        if self.whole:
            self._outdate_interrupted(runner)
            runner.message_hub.update_info(_INTERRUPTED, name)
            self._write(runner, name, meta)
        else:
            self.filename_tmpl, self.max_keep_ckpts = 'iter_{}.pth', -1
            super()._save_checkpoint_with_step(runner, iteration, meta)
        return str(self.last_ckpt)


def _unwritable(path: str, error: OSError, previous: str | None) -> ExecutionError:
    kept = f'{previous} is complete; resume from it' if previous else \
        'there is no earlier one of this run; start again'
    return ExecutionError(
        f'{path} cannot be written: {error.strerror or error}. Nothing of it is left, '
        f'and {kept} once there is space and permission.')
