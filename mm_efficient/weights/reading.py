"""Reading untrusted published files, and writing ours."""
import os
import re
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.runner.checkpoint import CheckpointLoader

from ..errors import explain
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
from .unpickling import explain_unreadable, load_plain

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

    Raises:
        ExecutionError: If it cannot be written.
    """
    path = Path(path)
    with explain(f'{path} cannot be written', 'Nothing of it is left; check space and '
                 'permissions.'):
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
        return load_plain(address)
    if re.match('https?://|timm/', address):
        return _read_online(address, source)
    with explain_unreadable(source):
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
        return load_plain(path, name=address)
    except CheckpointError as error:
        discard(path)
        raise CheckpointError(
            f'{error}. The download has been removed; try again') from None
