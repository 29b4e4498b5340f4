"""Reading untrusted published files, and writing ours."""
import argparse
import os
import re
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from ..files import whole_file
from .conversion import (
    Conversion,
    OwnCheckpointError,
    UnknownWeightsError,
    convert_checkpoint,
)
from .download import HUB_FILE, discard, fetch
from .family import FAMILIES, CheckpointError
from .locating import checkpoints_folder, locate

SCHEME = 'published://'


def convert_file(source: str | Path) -> Conversion:
    """Read a published checkpoint and convert it.

    Args:
        source (str | Path): See :func:`.locating.locate`; with or without
            ``published://``.

    Returns:
        Conversion: See :func:`convert_checkpoint`.

    Raises:
        CheckpointError: If the file cannot be fetched, read or converted.
    """
    source = str(source).removeprefix(SCHEME)
    return _convert(source, read_untrusted(source))


def read_published(uri: str) -> Any:
    """Read the weights of a backbone: published ones, which are converted, or ours.

    Args:
        uri (str): ``published://`` and a source for :func:`.locating.locate`.

    Returns:
        Any: A checkpoint of the ``ImageClassifier``; what the file holds if it is none
        of the authors', such as a checkpoint of ours or the weights of a backbone.

    Raises:
        CheckpointError: If the file cannot be fetched, read or converted.
    """
    try:
        return load_from_published(uri)
    except UnknownWeightsError as error:  # are compared with the backbone next
        return error.checkpoint


@CheckpointLoader.register_scheme(prefixes=SCHEME, force=True)
def load_from_published(filename: str, map_location: Any = None) -> dict:
    """Load ``published://`` URIs for MMEngine: read, convert, report.

    Args:
        filename (str): ``published://`` and a source for :func:`.locating.locate`.
        map_location (optional): Ignored; the weights stay on the CPU.
            Defaults to None.

    Returns:
        dict: ``dict(meta=..., state_dict=...)`` of the ``ImageClassifier``, or a
        checkpoint of ours as it is.
    """
    source = filename.removeprefix(SCHEME)
    content = read_untrusted(source)
    try:
        conversion = _convert(source, content)
    except OwnCheckpointError:
        return content
    print_log(f'Converted {filename}\n{conversion.report}', logger='current')
    return conversion.checkpoint


def _convert(source: str, checkpoint: Any) -> Conversion:
    try:
        return convert_checkpoint(checkpoint)
    except CheckpointError as error:
        error.args = (f'{source}: {error}', )
        raise


def write_checkpoint(checkpoint: dict, path: str | Path) -> None:
    """Write a checkpoint completely or not at all.

    Args:
        checkpoint (dict): Anything that ``torch.save`` accepts.
        path (str | Path): File to write; its folder is created if needed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path) as draft:
        torch.save(checkpoint, draft)


def read_untrusted(source: str) -> Any:
    """Read a file without executing anything in it.

    Args:
        source (str): See :func:`.locating.locate`.

    Returns:
        Any: Its content, on the CPU.

    Raises:
        CheckpointError: If the file cannot be found, fetched or read.
    """
    address = locate(source)
    if os.path.isfile(address):
        return _read_file(Path(address), address)
    if re.match('https?://|timm/', address):
        return _read_online(address, source)
    with _untrusted(source):
        return CheckpointLoader.load_checkpoint(source, 'cpu')


def _read_online(address: str, source: str) -> Any:
    try:
        path = fetch(address)
    except CheckpointError as error:
        suffix = Path(HUB_FILE if address.startswith('timm/') else address).suffix
        known = any(source in family.variants for family in FAMILIES)
        place = f'save it as {checkpoints_folder().absolute() / source}{suffix}'
        raise CheckpointError(f'{error}, or download the file elsewhere and '
                              f'{place if known else "pass its path"}') from error
    try:
        return _read_file(path, address)
    except CheckpointError as error:
        discard(path)
        raise CheckpointError(
            f'{error}. The download has been removed; try again') from None


def _read_file(path: Path, name: str) -> Any:
    damage = find_damage(path)
    if damage:
        raise CheckpointError(f'{name}: {damage}')
    with _untrusted(name):
        if path.suffix == '.safetensors':
            return read_safetensors(path)
        return torch.load(path, map_location='cpu', weights_only=True)


def find_damage(path: str | Path) -> str | None:
    """Compare the checksums in a PyTorch file, which ``torch.load`` does not.

    Args:
        path (str | Path): The file.

    Returns:
        str | None: What is wrong. None if nothing is, or the file has no checksums:
        safetensors, and files of PyTorch before 1.6.
    """
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as records:
            record = records.testzip()
    except Exception as error:  # any field of the file can be damaged
        return f'the file is damaged ({error}); get it again'
    return record and (f'the file is damaged: its record {record} does not match its '
                       'checksum; get it again')


def read_safetensors(path: str | Path) -> dict[str, Tensor]:
    """Read a file of tensors in the safetensors format.

    Args:
        path (str | Path): The file.

    Returns:
        dict[str, Tensor]: The tensors, on the CPU.

    Raises:
        ImportError: Without the package safetensors.
    """
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise ImportError(
            'reading .safetensors needs the package safetensors: '
            'pip install safetensors') from error
    return load_file(path)


def _history_method(owner: Any, name: str) -> Callable:
    """``getattr`` for MMEngine's logs, which name methods of their class."""
    if owner is not HistoryBuffer or name not in ('mean', 'min', 'max', 'current'):
        raise TypeError(f'refused to get {name} of {owner}')
    return getattr(owner, name)


def _named(function: Callable, module: str, name: str) -> Callable:
    """Let a function stand for another one that a file may name."""
    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call


_NUMPY: list[Any] = [np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]]
# Beyond tensors: arguments of training scripts, and what MMEngine stores with weights
PLAIN_DATA = [
    argparse.Namespace, HistoryBuffer, np.ndarray, np.dtype,
    *{type(np.dtype(kind)) for kind in np.typecodes['AllInteger'] + 'efdg?'},
    _named(_history_method, 'builtins', 'getattr'),
    *(_named(function, f'{package}.multiarray', function.__name__)
      for package in ('numpy.core', 'numpy._core')  # before and since NumPy 2
      for function in _NUMPY)]


@contextmanager
def _untrusted(name: str) -> Iterator[None]:
    """Context in which ``torch.load`` accepts only tensors and plain data.

    From PyTorch 2.5 on, the latter includes ``PLAIN_DATA``.

    Raises:
        CheckpointError: If the file cannot be read, with ``name`` and the reason.
    """
    allow = getattr(torch.serialization, 'safe_globals', None)
    variable = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(variable)
    os.environ[variable] = '1'
    try:
        with allow(PLAIN_DATA) if allow else nullcontext():
            yield
    except (FileNotFoundError, PermissionError, ImportError):
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise CheckpointError(f'{name}: {_why_unreadable(error)}') from error
    finally:
        del os.environ[variable]
        if before is not None:
            os.environ[variable] = before


def _why_unreadable(error: Exception) -> str:
    refused = re.search(r'(?:Unsupported global: GLOBAL|Unsupported class) '
                        r'(\S+)', str(error))
    if refused is None:
        # PyTorch adds a page of general advice
        detail = str(error).split('Weights only load failed')[0]
        detail = ' '.join(f'{type(error).__name__} {detail}'.split())
        return ('not a checkpoint, or an incomplete one; get the file again '
                f'({textwrap.shorten(detail, 120)})')
    return (f'holds a Python object of type {refused[1].rstrip(".")}, and an untrusted '
            'file may hold only tensors and plain data. If you trust its origin, save '
            'the weights alone: torch.save(torch.load(path, '
            "weights_only=False)['state_dict'], 'weights.pth')")
