"""Downloading published weights once, to a cache."""
import hashlib
import http.client
import re
from pathlib import Path
from urllib.parse import urlparse

import torch
from filelock import FileLock

from .family import CheckpointError

HUB_FILE = 'model.safetensors'


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
        raise _failed(url, error) from error


def _from_hub(name: str) -> Path:
    from huggingface_hub import hf_hub_download
    try:
        path = Path(hf_hub_download(name, HUB_FILE))
    except Exception as error:  # of whichever HTTP library it uses
        raise _failed(hub_url(name), error) from error
    # The cache stores large files under their SHA-256 and links to them
    blob = path.resolve().name
    return _checked(path, name, blob if re.fullmatch('[0-9a-f]{64}', blob) else '')


def hub_url(name: str, endpoint: str | None = None) -> str:
    """URL of the weights of a timm model.

    Args:
        name (str): 'timm/MODEL.TAG'.
        endpoint (str, optional): Address of the hub. Defaults to None, the one that
            huggingface_hub is set to.
    """
    from huggingface_hub import hf_hub_url
    return hf_hub_url(name, HUB_FILE, endpoint=endpoint)


def _failed(url: str, error: BaseException) -> CheckpointError:
    while error.__cause__:  # what a library has wrapped in general advice
        error = error.__cause__
    reason = (str(error).strip() or type(error).__name__).partition('\n')[0]
    return CheckpointError(f'{url}: download failed ({reason.rstrip(".")}). Check the '
                           'address and the connection')


def _checked(path: Path, address: str, expected: str) -> Path:
    actual = sha256(path) if expected else ''
    if not actual.startswith(expected):
        discard(path)
        raise CheckpointError(
            f'{address}: expected a file with SHA-256 {expected}, got {actual}. The '
            'download has been removed; try again')
    return path
