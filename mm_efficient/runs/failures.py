"""Failures of a run, told by the file, entry or option at fault."""
import contextlib
import random
import re
import shutil
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.dist import is_main_process
from torch import nn

from ..errors import (
    ExecutionError,
    InputError,
    ReportedError,
    StoppedError,
    one_line,
    short,
)
from ..files import PACKAGE
from .coco_entries import check_coco_entries
from .image_checks import build_dataset, image_faults
from .model_checks import PREPROCESSORS
from .traversal import split_datasets
from .work_dirs import LOCK

# Of gloo, which connects processes on the CPU
_LOST_PEER = re.compile(r'gloo.*Connection (closed|reset) by peer', re.S)


class SampleError(InputError):
    """A sample of a data set cannot be loaded."""


class NamedPipeline:
    """A pipeline whose errors name the file.

    Args:
        pipeline (Any): What it does: MMEngine's ``Compose``.
        dataset (Any): The data set that it belongs to.
    """

    def __init__(self, pipeline: Any, dataset: Any) -> None:
        self.pipeline = pipeline
        self.test_mode = getattr(dataset, 'test_mode', False)
        self.most = getattr(dataset, 'max_refetch', 1000)
        self.skipped = 0

    def __call__(self, data: dict) -> Any:
        """Load a sample.

        Args:
            data (dict): Information on it.

        Raises:
            SampleError: If it cannot be loaded, or too many samples in a row.
        """
        path = data.get('img_path')
        try:
            sample = self.pipeline(data)
        except (InputError, ExecutionError):
            raise
        except Exception as error:
            labels = data.get('seg_map_path')
            steps = [type(frame.f_locals['self']).__name__
                     for frame, _ in traceback.walk_tb(error.__traceback__)
                     if isinstance(frame.f_locals.get('self'), BaseTransform)]
            raise SampleError(
                f'{path}{f" with {labels}" if labels else ""} cannot be loaded: '
                f'{type(error).__name__}: {one_line(error)}'
                f'{f" (in {steps[-1]} of the pipeline)" if steps else ""}') from error
        self.skipped = 0 if sample is not None else self.skipped + 1
        if sample is None and (self.test_mode or self.skipped > self.most):
            raise SampleError(
                f'{path} cannot be loaded, or has no objects'
                + ('.' if self.test_mode else
                   f', and neither can the {self.skipped - 1} samples tried before.'))
        return sample

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__['pipeline'], name)


def name_files(dataset: Any) -> None:
    """Let errors of a data set's pipeline name the file.

    Args:
        dataset (Any): A data set or a wrapper around some. Changed in place.
    """
    for inner in (*getattr(dataset, 'datasets', ()), getattr(dataset, 'dataset', None)):
        if inner is not None:
            name_files(inner)
    pipeline = getattr(dataset, 'pipeline', None)
    if callable(pipeline) and not isinstance(pipeline, NamedPipeline):
        dataset.pipeline = NamedPipeline(pipeline, dataset)


def check_first_sample(dataset: Any, model: nn.Module, split: str) -> None:
    """Load one sample, which must be what the model takes.

    Args:
        dataset (Any): A data set, after :func:`name_files`. One that cannot be indexed
            is left alone.
        model (nn.Module): Of a run, perhaps wrapped for several processes.
        split (str): 'train', 'val' or 'test', for the message.

    Raises:
        InputError: If it cannot be loaded, or has no image.
    """
    if not hasattr(dataset, '__getitem__') or not len(dataset):
        return
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        sample = dataset[0]
    random.setstate(states[0])
    np.random.set_state(states[1])
    preprocessor = getattr(getattr(model, 'module', model), 'data_preprocessor', None)
    if type(preprocessor).__name__ in PREPROCESSORS and (
            not isinstance(sample, dict) or 'inputs' not in sample):
        name = type(preprocessor).__name__[:3]
        raise InputError(
            f'{split}_dataloader.dataset.pipeline gives no inputs for the model, but '
            f'{short(list(sample) if isinstance(sample, dict) else sample)}. End it '
            f"with dict(type='Pack{name.replace('Cls', '')}Inputs').")


@contextlib.contextmanager
def find_cause(cfg: Config, splits: tuple[str, ...]) -> Iterator[None]:
    """Context that looks through the data when a run fails.

    Args:
        cfg (Config): Config of the run.
        splits (tuple[str, ...]): What it reads, any of 'train', 'val' and 'test'.

    Raises:
        InputError: In place of another error, if the data explain it.
        ReportedError: In place of a connection lost because another process has ended.
    """
    try:
        yield
    except (StoppedError, ExecutionError):
        raise
    except Exception as error:
        if _LOST_PEER.search(str(error)):
            raise ReportedError('another process has ended') from error
        if isinstance(error, InputError) and 'cannot be loaded' not in str(error):
            raise
        _explain_batch(cfg, error)
        for split in splits:
            check_coco_entries(cfg, split, float('inf'))
            if 'out of bounds' in str(error) or 'device-side assert' in str(error):
                _check_all_maps(cfg, split)
        raise


def _explain_batch(cfg: Config, error: Exception) -> None:
    if 'Expected more than 1 value per channel' in str(error):
        batch = cfg.train_dataloader.get('batch_size')
        raise InputError(
            'A batch norm of the model got one value per channel: one image with a map '
            'of 1 x 1 pixel. Train with larger images, with more than '
            f'train_dataloader.batch_size={batch}, or with train_dataloader.drop_last='
            'True if the last batch of an epoch has one image.') from error


def _check_all_maps(cfg: Config, split: str) -> None:
    for settings in split_datasets(cfg, split) if cfg.default_scope == 'mmseg' else ():
        dataset = build_dataset(cfg, settings, split, large=True)
        if dataset is not None:
            for path, fault in image_faults(cfg, settings, dataset, split, True):
                raise InputError(f'{path} {fault}')


@contextlib.contextmanager
def no_empty_work_dir(work_dir: str | Path, is_new: bool,
                      started: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Context in which a run is built or run; one that never starts leaves no folder.

    Args:
        work_dir (str | Path): Its folder.
        is_new (bool): Whether nothing was in it before, so that it is emptied on
            failure. Checkpoints are never removed.
        started (Callable): Tells whether the run has done something, which makes its
            exceptions pass. Defaults to never.

    Raises:
        ExecutionError: In place of other exceptions, except those of modules that are
            neither installed nor of this package.
    """
    try:
        yield
    except StoppedError:
        raise
    except Exception as error:
        if started():
            raise
        paths = entries(work_dir)
        if is_new and is_main_process() and not any(
                path.suffix == '.pth' for path in paths):
            for path in paths:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            with contextlib.suppress(OSError):  # locked, or never made
                Path(work_dir).rmdir()
        frames = traceback.extract_tb(error.__traceback__)
        if isinstance(error, (InputError, ExecutionError)) or \
                not all(map(_is_installed, frames[2:])):  # below this and the caller
            raise
        place = [frame for frame in frames if frame.line][-1]
        reason = one_line(error) or place.line  # such as an assertion
        raise ExecutionError(
            f'The run has failed: {type(error).__name__}: {reason:.400} '
            f'({place.filename}, line {place.lineno})') from error


def _is_installed(frame: traceback.FrameSummary) -> bool:
    """Whether code is part of a package, this one or Python."""
    paths = [sysconfig.get_path(name) for name in ('stdlib', 'purelib', 'platlib')]
    return frame.filename.startswith(('<', str(PACKAGE), *paths)) or \
        frame.filename.endswith('.pyx')


def entries(work_dir: str | Path) -> list[Path]:
    """List what is in the folder of a run, but for the lock.

    Args:
        work_dir (str | Path): The folder, which need not exist.

    Returns:
        list[Path]: Its files and folders.
    """
    return [path for path in Path(work_dir).iterdir() if path.name != LOCK] \
        if Path(work_dir).is_dir() else []
