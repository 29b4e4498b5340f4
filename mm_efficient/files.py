"""File helpers: atomic writes, and images read as in OpenMMLab."""
import contextlib
import errno
import os
import os.path as osp
import re
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import mmcv
import numpy as np
from PIL import Image, UnidentifiedImageError

from .errors import InputError

PACKAGE = Path(__file__).resolve().parent
FOLDER_SUFFIXES = ('.mlpackage', )  # outputs that are folders
IMAGE_SUFFIXES = ('.bmp', '.jpeg', '.jpg', '.png', '.ppm', '.tif', '.tiff', '.webp')


def configs_folder() -> Path:
    """Folder of this package's configs, in the checkout or the installation."""
    installed = PACKAGE / '.mim' / 'configs'
    return installed if installed.is_dir() else PACKAGE.parent / 'configs'


def config_files() -> list[Path]:
    """All complete configs of this package, without the ``_base_`` ones."""
    return sorted(configs_folder().glob('[!_]*/*.py'))


def is_local(path: str) -> bool:
    """Whether a path is on this machine, without a scheme such as ``http://``."""
    return re.match(r'[^/\\]+://', path) is None


def join_root(root: str, path: str) -> str:
    """Join a path of a data set config with its ``data_root``.

    Args:
        root (str): The ``data_root``.
        path (str): Relative to ``root``, absolute, or with a scheme.

    Returns:
        str: ``path`` itself unless it is relative.
    """
    return path if osp.isabs(path) or not is_local(path) else osp.join(root, path)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Context that yields a temporary file, which replaces ``path`` on success.

    Args:
        path (str | Path): The file to write. Its folder must exist.

    Yields:
        Path: A file next to ``path`` with the same suffix, removed on failure. It is on
        the disk before it replaces ``path``, so that not even a power failure leaves a
        part of it under that name.
    """
    path = Path(path)
    draft = path.with_name(f'.{path.stem}.{os.getpid()}.tmp{path.suffix}')
    try:
        yield draft
        if draft.is_file():
            _flush(draft, os.O_RDWR)
        os.replace(draft, path)
        if os.name == 'posix':
            _flush(path.parent, os.O_RDONLY)
    finally:
        draft.unlink(missing_ok=True)


def _flush(path: Path, mode: int) -> None:
    """Write what the system holds back of a file or folder to the disk."""
    descriptor = os.open(path, mode)
    try:
        os.fsync(descriptor)
    except OSError as error:  # some network file systems do not know it for folders
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def remove_drafts(folder: str | Path, suffix: str) -> None:
    """Remove the temporary files that a killed process has left behind.

    Args:
        folder (str | Path): Folder that no other process writes to now.
        suffix (str): Suffix of the files.
    """
    for draft in Path(folder).glob(f'.*.tmp{suffix}'):
        if re.fullmatch(rf'\..+\.\d+\.tmp{re.escape(suffix)}', draft.name):
            draft.unlink(missing_ok=True)


def check_output(path: str | Path, suffixes: Sequence[str],
                 inputs: Sequence[str | Path | None] = ()) -> None:
    """Check, before any work, that a file can be written.

    Args:
        path (str | Path): The file; its folder is created.
        suffixes (Sequence[str]): Allowed suffixes.
        inputs (Sequence[str | Path | None]): What must not be overwritten; those that
            are no files are left alone. Defaults to none.

    Raises:
        InputError: If it cannot be written.
    """
    if not str(path) or '\0' in str(path):
        raise InputError(f'{str(path)!r} is not a path.')
    if str(path).endswith('/'):
        raise InputError(f'{path} names a folder; expected a file.')
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise InputError(f'{path}: the name of an output file has to end with '
                         f'{" or ".join(suffixes)}.')
    for source in inputs:
        if path.exists() and source and Path(source).exists() and path.samefile(source):
            raise InputError(f'{path} is read and would be overwritten. Name another '
                             'output file.')
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f'The folder of {path} cannot be created: {error}.') from None
    if path.is_dir() and path.suffix not in FOLDER_SUFFIXES:
        raise InputError(f'{path} cannot be written: it is a folder.')
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise InputError(f'{path} cannot be written: {error}.') from None


def find_images(source: str | Path) -> list[Path]:
    """List the image files at a path.

    Args:
        source (str | Path): An image, or a folder of images (without subfolders).

    Returns:
        list[Path]: At least one file, sorted. Their headers have been checked.

    Raises:
        InputError: If there is none, or one is not an image.
    """
    path = Path(source)
    if not path.exists():
        raise InputError(f'{path} does not exist (current folder: {Path.cwd()}); '
                         'expected an image or a folder of images.')
    files = [path]
    if path.is_dir():
        files = sorted(file for file in path.iterdir()
                       if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
                       and not file.name.startswith('.'))
        if not files:
            raise InputError(f'{path} has no image directly in it; expected files '
                             f'named {" ".join("*" + s for s in IMAGE_SUFFIXES)}.')
    for file in files:
        try:
            with Image.open(file) as image:
                image.verify()
        except (UnidentifiedImageError, OSError, SyntaxError) as error:
            raise InputError(f'{file} is not an image that can be read '
                             f'({error}); expected JPEG, PNG or the like.') from None
    return files


def read_image(path: str | Path, short_side: int | None = None) -> np.ndarray:
    """Read an image as the configs' pipelines do, with Pillow.

    Args:
        path (str | Path): The file.
        short_side (int, optional): Resize the shorter side to this many pixels,
            keeping the aspect ratio. Defaults to None, no resizing.

    Returns:
        np.ndarray: RGB, (H, W, 3), uint8.

    Raises:
        InputError: If it cannot be read.
    """
    try:
        image = mmcv.imread(str(path), channel_order='rgb', backend='pillow')
    except OSError as error:
        raise InputError(f'{path} cannot be read as an image: {error}.') from None
    if image is None:
        raise InputError(f'{path} cannot be read as an image; is it truncated?')
    if short_side:
        height, width = image.shape[:2]
        scale = short_side / min(height, width)
        image = mmcv.imresize(image, (round(width * scale), round(height * scale)))
    return image
