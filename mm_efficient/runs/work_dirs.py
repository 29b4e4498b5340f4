"""The folder of a training run: its latest good checkpoint, and who uses it."""
import contextlib
import os
import re
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process

from ..engine.checkpoints import LAST
from ..errors import InputError
from ..files import is_local
from ..weights.checking import check_checkpoint
from .settings import add_hook
from .traversal import nested_dicts, type_name

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

LOCK = '.in_use'


def make_durable(cfg: Config) -> None:
    """Write checkpoints whole, and stop in order when a signal asks for it.

    Args:
        cfg (Config): Changed in place: the stock ``CheckpointHook`` becomes
            :class:`~mm_efficient.engine.WholeCheckpointHook`, and
            :class:`~mm_efficient.engine.StopHook` is added.
    """
    hooks = dict(cfg.get('default_hooks') or {})
    hook = hooks.get('checkpoint', {})
    if hook is not None and hook.get('type', 'CheckpointHook') == 'CheckpointHook':
        defaults = {} if hook else dict(interval=1)  # as in MMEngine's runner
        hooks['checkpoint'] = {**defaults, **hook, 'type': 'WholeCheckpointHook'}
        cfg.default_hooks = hooks
    if all(hook.get('type') != 'StopHook' for hook in cfg.get('custom_hooks') or []):
        add_hook(cfg, dict(type='StopHook'))


def take_resume(cfg: Config, resume: bool | str | Path | None
                ) -> bool | str | Path | None:
    """Let ``resume=True`` of a config without ``load_from`` count as an argument.

    Args:
        cfg (Config): Config of the run. Its ``resume`` is reset then.
        resume (bool | str | Path, optional): The argument.

    Returns:
        bool | str | Path | None: A checkpoint, or True for the latest one.
    """
    if cfg.get('resume') and cfg.get('load_from') is None:
        cfg.resume = False
        return resume or True
    return resume


def find_start(work_dir: str | Path, resume: bool | str | Path | None = None,
               auto_resume: bool = False, read: dict[str, Any] | None = None
               ) -> str | Path | None:
    """Find the checkpoint that a run continues from.

    Args:
        work_dir (str | Path): Folder of the run.
        resume (bool | str | Path, optional): A checkpoint, or True for the latest one
            in the work dir. Defaults to None.
        auto_resume (bool): Whether to prefer the latest one in the work dir, if there
            is one. Defaults to False.
        read (dict, optional): Receives the content of the latest one by its path.

    Returns:
        str | Path | None: The checkpoint. None for a run that starts from the
        beginning.

    Raises:
        InputError: If there are checkpoints in the work dir, but none is complete.
    """
    latest = None
    if auto_resume or resume is True:
        latest = latest_checkpoint(work_dir, read)
    return latest or (None if resume is True else resume or None)


def latest_checkpoint(work_dir: str | Path, read: dict[str, Any] | None = None
                      ) -> str | None:
    """Find the newest checkpoint of a run that can be resumed from.

    Args:
        work_dir (str | Path): Its folder, which may have been moved.
        read (dict, optional): Receives the content of the checkpoint by its path.

    Returns:
        str | None: Path of the checkpoint that ``last_checkpoint`` names, else of the
        newest ``epoch_N.pth`` or ``iter_N.pth`` that is complete. None if there is no
        checkpoint at all.

    Raises:
        InputError: If there are checkpoints, but none that can be resumed from.
    """
    reasons: list[str] = []
    for path in _candidates(Path(work_dir)):
        try:
            content = check_checkpoint(str(path), resume=True)
        except InputError as error:
            reasons.append(str(error))
            continue
        rank = os.environ.get('RANK', os.environ.get('SLURM_PROCID', '0'))
        if reasons and rank == '0':
            print(*(f'warning: {reason}' for reason in reasons),
                  f'Resuming from the one before: {path}', sep='\n', file=sys.stderr)
        if read is not None:
            read[str(path)] = content
        return str(path)
    if reasons:
        raise InputError(f'{work_dir} has no checkpoint to resume from. {reasons[0]} '
                         'To start anew, choose another --work-dir.')
    return None


def _candidates(work_dir: Path) -> list[Path]:
    """Checkpoints of a run, the newest first."""
    try:
        named = Path((work_dir / LAST).read_text().strip())
    except (OSError, ValueError):  # none, or not a text
        named = Path()
    folders = [work_dir, (work_dir / named).parent] if named.name else [work_dir]
    found = {path: path.stat().st_mtime_ns for folder in folders if folder.is_dir()
             for path in folder.iterdir() if re.fullmatch(r'(epoch|iter)_\d+\.pth',
                                                          path.name)}
    newest = sorted(found, key=lambda path: found[path], reverse=True)
    # An absolute path may be that of the folder before it was moved
    first = [path for path in (work_dir / named.name, work_dir / named)
             if named.name and path.is_file()]
    return list(dict.fromkeys([*first[:1], *newest]))


def check_folders(cfg: Config, splits: Iterable[str]) -> None:
    """Check that a run can write to its folders: the work dir, and those of hooks.

    Args:
        cfg (Config): Config of the run.
        splits (Iterable[str]): What it reads, any of 'train', 'val' and 'test'.

    Raises:
        InputError: If not.
    """
    check_work_dir(cfg.work_dir)
    writers = [cfg.get(key) for key in (
        'default_hooks', 'custom_hooks', *(f'{split}_evaluator' for split in splits))]
    for node in nested_dicts(writers):
        for key in ('out_dir', 'output_dir'):
            path = node.get(key)
            if isinstance(path, str) and is_local(path) and not (
                    node.get('backend_args')):
                name = type_name(node)
                check_work_dir(path, '--show-dir' if name == 'SavePredictionImagesHook'
                               else f'{key} of {name or "a hook"}')


def check_work_dir(work_dir: str | Path, option: str = '--work-dir') -> None:
    """Check that a folder can be made and written to, without making it.

    Args:
        work_dir (str | Path): The folder.
        option (str): What sets it. Defaults to '--work-dir'.

    Raises:
        InputError: If not.
    """
    text = str(work_dir)
    if not text or '\0' in text:
        raise InputError(f'The folder {text!r} is not a path. Choose another '
                         f'{option}.')
    folder = Path(work_dir).absolute()
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = ' is a file' if folder.is_file() else f': {error.strerror}'
        raise InputError(f'The folder {work_dir} cannot be written: {folder}{reason}. '
                         f'Choose another {option}.') from None


@contextlib.contextmanager
def in_use(work_dir: str | Path) -> Iterator[None]:
    """Context in which no other run may use a work dir.

    Args:
        work_dir (str | Path): The folder, which is created.

    Raises:
        InputError: If another run on this or, where the file system knows of locks,
            another machine uses it.
    """
    if fcntl is None or not is_main_process():
        yield
        return
    path = Path(work_dir, LOCK)
    made = [each for each in (path.parent, *path.parent.parents) if not each.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, 'ab+', buffering=0) as file:
        _lock(file, path)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # not empty
                for folder in made:
                    folder.rmdir()


def _lock(file: Any, path: Path) -> None:
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        file.seek(0)
        raise InputError(
            f'{path.parent} is in use by another run ({file.read().decode()}). Wait '
            'until it ends, or choose another --work-dir.') from None
    except OSError:  # a file system without locks
        pass
    with contextlib.suppress(OSError):  # a full disk
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}'.encode())
