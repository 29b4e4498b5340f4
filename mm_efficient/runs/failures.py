"""Failures of a run, told by the file, entry or option at fault."""
import contextlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import is_main_process

from ..errors import (
    ExecutionError,
    InputError,
    ReportedError,
    StoppedError,
    one_line,
)
from .coco_entries import check_coco_entries
from .image_checks import build_dataset, image_faults
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
            raise SampleError(
                f'{path}{f" with {labels}" if labels else ""} cannot be loaded: '
                f'{type(error).__name__}: {one_line(error)}') from error
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
def no_empty_work_dir(work_dir: str | Path) -> Iterator[None]:
    """Context in which a run is built; what has failed to start leaves no folder.

    Args:
        work_dir (str | Path): Its folder. Unless something was in it before, it is
            emptied on failure.

    Raises:
        ExecutionError: In place of other exceptions.
    """
    before = _entries(work_dir)
    try:
        yield
    except Exception as error:
        if not before and is_main_process():
            for path in _entries(work_dir):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        if isinstance(error, (InputError, ExecutionError)):
            raise
        raise ExecutionError(f'The run cannot be started: {type(error).__name__}: '
                             f'{one_line(error)}') from error


def _entries(folder: str | Path) -> list[Path]:
    """What is in the folder of a run, but for the lock."""
    return [path for path in Path(folder).iterdir() if path.name != LOCK] \
        if Path(folder).is_dir() else []
