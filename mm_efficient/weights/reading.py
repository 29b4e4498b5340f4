"""Reading untrusted published files, and writing ours."""
import argparse
import os
import re
import textwrap
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader
from torch import Tensor

from ..files import whole_file
from .conversion import Conversion, convert_checkpoint
from .download import discard, fetch, online_address, published_weights
from .family import CheckpointError

SCHEME = 'published://'


def convert_file(source: str) -> Conversion:
    """Read a published checkpoint and convert it.

    Args:
        source (str): Path, any MMEngine checkpoint URI, or a downloadable name: a
            variant ('ecoformer_pvt_b0') or 'timm/MODEL.TAG'; with or without
            ``published://``.

    Returns:
        Conversion: See :func:`convert_checkpoint`.

    Raises:
        CheckpointError: If the file cannot be fetched, read or converted.
        FileNotFoundError: If there is no such file.
    """
    source = str(source)
    source = source[len(SCHEME):] if source.startswith(SCHEME) else source
    checkpoint = read_untrusted(source)
    try:
        return convert_checkpoint(checkpoint)
    except CheckpointError as error:
        raise CheckpointError(f'{source}: {error}') from None


@CheckpointLoader.register_scheme(prefixes=SCHEME, force=True)
def load_from_published(filename: str, map_location: Any = None) -> dict:
    """Load ``published://`` URIs for MMEngine: read, convert, report.

    Args:
        filename (str): ``published://`` and a source for :func:`convert_file`.
        map_location (optional): Ignored; the weights stay on the CPU.
            Defaults to None.

    Returns:
        dict: ``dict(meta=..., state_dict=...)`` of the ``ImageClassifier``.
    """
    conversion = convert_file(filename)
    print_log(f'Converted {filename}\n{conversion.report}', logger='current')
    return conversion.checkpoint


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
        source (str): Path, any MMEngine checkpoint URI, or a known name.

    Returns:
        Any: Its content, on the CPU.

    Raises:
        CheckpointError: If the file cannot be fetched or read.
        FileNotFoundError: If there is no such file.
    """
    if re.match('https?://', source):
        return _read_online(source)
    if '://' in source:
        with _untrusted(source):
            return CheckpointLoader.load_checkpoint(source, 'cpu')
    path = Path(source).expanduser()
    if path.is_file():
        return _read_file(path, source)
    address = online_address(source)
    if address is not None:
        return _read_online(address)
    raise FileNotFoundError(
        f'{source}: no such file, nor weights known by this name (known: '
        f'{", ".join(published_weights())}, timm/MODEL.TAG)')


def _read_online(address: str) -> Any:
    path = fetch(address)
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


@contextmanager
def _untrusted(name: str) -> Iterator[None]:
    """Context in which ``torch.load`` accepts only tensors and plain data.

    ``argparse.Namespace`` is accepted too, from PyTorch 2.5 on: training scripts store
    their arguments alongside the weights.

    Raises:
        CheckpointError: If the file cannot be read, with ``name`` and the reason.
    """
    allow = getattr(torch.serialization, 'safe_globals', None)
    variable = 'TORCH_FORCE_WEIGHTS_ONLY_LOAD'
    before = os.environ.get(variable)
    os.environ[variable] = '1'
    try:
        with allow([argparse.Namespace]) if allow else nullcontext():
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
    kind = refused[1].rstrip('.')
    if kind.startswith('mmengine.'):
        return ('was written by MMEngine, not published by the authors of a '
                'model: use it directly, without published://')
    return (f'holds a Python object of type {kind}, and an untrusted file may '
            'hold only tensors and plain data. If you trust its origin, save '
            'the weights alone: torch.save(torch.load(path, '
            "weights_only=False)['state_dict'], 'weights.pth')")
