"""Finding published weights by name: in ``checkpoints/``, else at a known address."""
import os
import re
from pathlib import Path

from .family import FAMILIES, CheckpointError, Family

FOLDER_VARIABLE = 'MM_EFFICIENT_CHECKPOINTS'
SUFFIXES = ('.pth', '.pth.tar', '.pt', '.safetensors')


class NeverPublishedError(CheckpointError):
    """The authors published no weights of a variant, and there is no file of it."""


def checkpoints_folder() -> Path:
    """Folder of weights that are found by name.

    Returns:
        Path: That of the environment variable ``MM_EFFICIENT_CHECKPOINTS``, else
        ``checkpoints`` in the current folder. It need not exist.
    """
    return Path(os.environ.get(FOLDER_VARIABLE) or 'checkpoints').expanduser()


def published_weights() -> dict[str, str]:
    """Map the names of all downloadable weights to their addresses."""
    return {name: address for family in FAMILIES
            for name, address in family.downloads.items()}


def locate(source: str) -> str:
    """Find weights: a file, else a variant's file or address.

    Args:
        source (str): Path, URI, 'timm/MODEL.TAG', or a variant such as 'soft_tiny'. The
            file of a variant is named as the variant, or as the authors name it, with
            any of ``SUFFIXES``; case does not matter.

    Returns:
        str: Path of a file that exists, or an address for :func:`.download.fetch`, or
        another URI.

    Raises:
        CheckpointError: If there is no such file or name, or the authors offer the
            file on a page, to be downloaded in a browser.
        NeverPublishedError: If there is neither a file of the variant nor an address.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return str(path)
    if '://' in source or re.fullmatch(r'timm/[\w.-]+', source):
        return source
    for family in FAMILIES:
        if source in family.variants:
            file = _find_file(family, source)
            return str(file) if file else _address(family, source)
    raise CheckpointError(
        f'{source}: no such file, nor weights known by this name (known: '
        f'{", ".join(published_weights())}, timm/MODEL.TAG)')


def _find_file(family: Family, variant: str) -> Path | None:
    """Look for the weights of a variant in the folder, its own name first."""
    folder = checkpoints_folder()
    files = {file.name.lower(): file for file in
             (sorted(folder.iterdir()) if folder.is_dir() else ()) if file.is_file()}
    for name in (variant, *family.files.get(variant, ())):
        for suffix in SUFFIXES:
            if file := files.get(f'{name}{suffix}'.lower()):
                return file
    return None


def _address(family: Family, variant: str) -> str:
    if variant in family.downloads:
        return family.downloads[variant]
    place = checkpoints_folder().absolute() / f'{variant}.pth'
    if variant in family.files:
        raise CheckpointError(
            f'the weights of {variant} have to be downloaded in a browser: get '
            f'{family.files[variant][0]} from {family.code} and save it as {place}')
    raise NeverPublishedError(
        f'the authors of {family.name} published no weights of {variant}, and there is '
        f'no {place}. Train the classifier first, and start from it with --pretrained '
        f'work_dirs/{variant}_300e/epoch_300.pth')
