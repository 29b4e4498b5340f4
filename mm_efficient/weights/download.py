"""Downloading published weights once, to a cache."""
import hashlib
import http.client
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from filelock import FileLock

from .family import FAMILIES, CheckpointError

HUB_FILE = 'model.safetensors'


def online_address(name: str) -> str | None:
    """Look up the URL of weights by name.

    Args:
        name (str): A variant, such as 'ecoformer_pvt_b0', or 'timm/MODEL.TAG'.

    Returns:
        str | None: A URL for :func:`fetch`; None if the name is unknown.
    """
    if re.fullmatch(r'timm/[\w.-]+', name):
        return name
    return published_weights().get(name)


def published_weights() -> dict[str, str]:
    """Map the names of all downloadable weights to their URLs."""
    return {name: address for family in FAMILIES
            for name, address in family.downloads.items()}


def fetch(address: str) -> Path:
    """Download a file unless it is in the cache.

    Of several processes that share a cache, one downloads while the others wait. The
    file is checked where its hash is known: from the hub, and for file names that end
    with ``-`` and at least 8 digits of the SHA-256, as torchvision's and OpenMMLab's.

    Args:
        address (str): http(s) URL, or 'timm/MODEL.TAG'.

    Returns:
        Path: File in PyTorch's hub folder or in the cache of huggingface_hub.

    Raises:
        CheckpointError: If it cannot be downloaded or its hash is wrong; nothing is
            left in the cache then.
    """
    return (_from_hub if address.startswith('timm/') else _from_url)(address)


def discard(path: Path) -> None:
    """Remove a downloaded file, so that :func:`fetch` downloads it again."""
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """Compute the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(2**20):
            digest.update(chunk)
    return digest.hexdigest()


def _from_url(url: str) -> Path:
    digest = hashlib.sha256(url.encode()).hexdigest()[:8]
    name = Path(urlparse(url).path).name or 'checkpoint'
    # Different URLs may share a file name
    path = Path(torch.hub.get_dir(), 'checkpoints', f'{digest}-{name}')
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f'{path}.lock'):
            if not path.is_file():  # now that no other process downloads it
                _download(url, path)
    hashed = re.search(r'-([0-9a-f]{8,64})\.\w+$', name)
    return _checked(path, url, hashed[1] if hashed else '')


def _download(url: str, path: Path) -> None:
    try:
        torch.hub.download_url_to_file(url, str(path), progress=True)
    except (OSError, http.client.HTTPException) as error:
        raise CheckpointError(
            f'{url}: download failed ({error}); check the URL and '
            'the connection, or download the file and pass its path') from error


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError
    try:
        path = Path(hf_hub_download(name, HUB_FILE))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = str(error).strip().split('\n')[0]
        known = ', '.join(address for address in published_weights().values()
                          if address.startswith('timm/'))
        raise CheckpointError(
            f'{name}: download from the Hugging Face hub failed ({reason}). '
            f'Check the connection and the name (known: {known}), or download '
            f'{HUB_FILE} yourself and pass its path') from error
    # The cache stores large files under their SHA-256 and links to them
    blob = path.resolve().name
    return _checked(path, name, blob if re.fullmatch('[0-9a-f]{64}', blob) else '')


def _checked(path: Path, address: str, expected: str) -> Path:
    actual = sha256(path) if expected else ''
    if not actual.startswith(expected):
        discard(path)
        raise CheckpointError(
            f'{address}: expected a file with SHA-256 {expected}, got {actual}. The '
            'download has been removed; try again')
    return path
