"""Reading PyTorch files without running anything in them.

A pickle names functions and classes, which unpickling calls. Here only those of tensors
and plain data are called, whatever the file, the tool or the version of PyTorch; see
``PLAIN_DATA``. Importing this module applies the same to everything that MMEngine's
``CheckpointLoader`` loads.
"""
import argparse
import codecs
import functools
import importlib
import os
import pathlib
import pickle
import re
import sys
import textwrap
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import Tensor

from ..errors import InputError
from .family import CheckpointError

ALLOW_VARIABLE = 'MM_EFFICIENT_SAFE_CLASSES'
_torch_load = torch.load


def _history_method(owner: Any, name: str) -> Callable:
    """``getattr`` for MMEngine's logs, which name methods of their class."""
    if owner is not HistoryBuffer or name not in ('mean', 'min', 'max', 'current'):
        raise pickle.UnpicklingError('Unsupported global: GLOBAL builtins.getattr ')
    return getattr(owner, name)


def _named(function: Callable, module: str, name: str) -> Callable:
    """Let a function stand for another one that a file may name."""
    def call(*args: Any) -> Any:
        return function(*args)

    call.__module__, call.__name__, call.__qualname__ = module, name, name
    return call


_NUMPY: list[Any] = [np.zeros(1).__reduce__()[0], np.float64(0).__reduce__()[0]]
_DTYPES = np.typecodes['AllInteger'] + np.typecodes['AllFloat'] + '?SU'
# Beyond tensors: arguments of training scripts, and what MMEngine stores with weights
PLAIN_DATA: list[Any] = [
    argparse.Namespace, HistoryBuffer, ConfigDict, np.ndarray, np.dtype,
    *{type(np.dtype(kind)) for kind in _DTYPES},
    _named(_history_method, 'builtins', 'getattr'),
    *(_named(pathlib.PurePosixPath, module, 'PosixPath')  # before and since Python 3.13
      for module in ('pathlib', 'pathlib._local')),
    *(_named(function, f'{package}.multiarray', function.__name__)
      for package in ('numpy.core', 'numpy._core')  # before and since NumPy 2
      for function in _NUMPY)]

# What PyTorch allows as well since 2.5. Counters are in the schedules of MMEngine, and
# `encode` makes the bytes of NumPy's arrays.
_PLAIN_SINCE_2_5: dict[str, Any] = {
    '_codecs.encode': codecs.encode, 'collections.Counter': Counter,
    'torch.device': torch.device,
    **{f'builtins.{each.__name__}': each for each in (bytearray, complex, set)},
    **{str(each): each for each in vars(torch).values()
       if isinstance(each, torch.dtype)}}


def load_plain(file: Any, map_location: Any = 'cpu', mmap: bool = False,
               name: str | None = None) -> Any:
    """Read a file of tensors and plain data, and nothing else.

    Args:
        file (str | Path | file object): ``.safetensors`` by its name, else anything
            that :func:`torch.load` reads.
        map_location (optional): See :func:`torch.load`. Defaults to 'cpu'.
        mmap (bool): Whether to read tensors from the file when they are used, where its
            format allows that. Defaults to False.
        name (str, optional): Name for messages. Defaults to None, that of the file.

    Returns:
        Any: What the file holds.

    Raises:
        CheckpointError: If the file holds anything else, is damaged, or cannot be
            read.
    """
    path = str(file) if isinstance(file, (str, Path)) else ''
    name = name or path or 'the checkpoint'
    damage = find_damage(path) if path else None
    if damage:
        raise CheckpointError(f'{name}: {damage}')
    with explain_unreadable(name):
        if path.endswith('.safetensors'):
            return read_safetensors(path)
        options = dict(mmap=True) if mmap and zipfile.is_zipfile(file) else {}
        with _undisturbed():
            return _load_tensors(file, map_location, options)


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


def _load_tensors(file: Any, map_location: Any, options: dict[str, Any]) -> Any:
    allowed = [*PLAIN_DATA, *_allowed_by_user()]
    if hasattr(torch.serialization, 'safe_globals'):
        # Not what others allow everywhere: OneDL's MMEngine does so with getattr
        others = torch.serialization.get_safe_globals()
        torch.serialization.clear_safe_globals()
        try:
            with torch.serialization.safe_globals(allowed):
                return _torch_load(file, map_location, weights_only=True, **options)
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(others)
    # PyTorch before 2.5 has no such list: the same rule in an unpickler of ours
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as records:
            if any(name.endswith('/constants.pkl') for name in records.namelist()):
                raise RuntimeError('TorchScript')
    unpickler = type('Unpickler', (_PlainUnpickler, ), dict(allowed=_by_name(allowed)))
    module = SimpleNamespace(
        __name__='pickle', Unpickler=unpickler,
        load=lambda file, **settings: unpickler(file, **settings).load())
    return _torch_load(file, map_location, pickle_module=module, weights_only=False,
                       **options)


def _by_name(allowed: list[Any]) -> dict[str, Any]:
    from torch import _weights_only_unpickler
    return {**_PLAIN_SINCE_2_5, **_weights_only_unpickler._get_allowed_globals(),
            **{f'{each.__module__}.{each.__qualname__}': each for each in allowed}}


_Unpickler: Any = pickle._Unpickler  # the one in Python, whose steps can be replaced


class _PlainUnpickler(_Unpickler):
    """Unpickler that finds only what is allowed, and changes no class or function."""

    allowed: Mapping[str, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        module, name = NAME_MAPPING.get((module, name), (
            IMPORT_MAPPING.get(module, module), name))  # from Python 2 to 3
        full_name = f'{module}.{name}'
        if full_name not in self.allowed:
            raise pickle.UnpicklingError(f'Unsupported global: GLOBAL {full_name} ')
        return self.allowed[full_name]

    def load_build(self) -> None:
        """Set the state of an object."""
        owner = self.stack[-2]
        if isinstance(owner, type) or not isinstance(owner, (
                Tensor, dict, *(each for each in self.allowed.values()
                                if isinstance(each, type)))):
            raise pickle.UnpicklingError(f'Can only build data, but got {type(owner)}')
        super().load_build()

    dispatch = {**_Unpickler.dispatch, pickle.BUILD[0]: load_build}


def _allowed_by_user() -> list[type]:
    """Classes that the environment variable names, beyond ``PLAIN_DATA``."""
    names = re.split(r'[\s,]+', os.environ.get(ALLOW_VARIABLE, '').strip())
    return [_import_class(name) for name in names if name]


def _import_class(name: str) -> type:
    module, _, attribute = name.rpartition('.')
    if not _can_be_allowed(name):
        raise InputError(f'{ALLOW_VARIABLE}: {name} cannot be allowed: expected the '
                         "full name of a package's class of data.")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        reason = f'cannot be imported: {error}'
        raise InputError(f'{ALLOW_VARIABLE}: {name} {reason}.') from None
    if not isinstance(found, type):
        raise InputError(f'{ALLOW_VARIABLE}: {name} is not a class; functions that a '
                         'file names are never called.')
    return found


def _can_be_allowed(name: str) -> bool:
    """Whether a name can be that of a package's class of data.

    Not so the standard library, PyTorch and NumPy, which can do anything.
    """
    module, _, attribute = name.rpartition('.')
    module = IMPORT_MAPPING.get(module, module)  # from Python 2 to 3
    found = getattr(sys.modules.get(module), attribute, type)  # nothing is imported
    return isinstance(found, type) and module.partition('.')[0] not in {
        '', '__main__', 'numpy', 'torch', *sys.stdlib_module_names}


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Let no variable of PyTorch change what is allowed, and nothing be advised."""
    with mock.patch.dict(os.environ), warnings.catch_warnings():
        warnings.simplefilter('ignore', UserWarning)
        os.environ.pop('TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD', None)
        if not hasattr(torch.serialization, 'safe_globals'):
            os.environ.pop('TORCH_FORCE_WEIGHTS_ONLY_LOAD', None)
        yield


@contextmanager
def plain_loading() -> Iterator[None]:
    """Context in which ``torch.load``, whoever calls it, is :func:`load_plain`."""
    def load(file: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        return load_plain(file, map_location)

    with mock.patch.object(torch, 'load', load):
        yield


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
def explain_unreadable(name: str) -> Iterator[None]:
    """Context that turns what reading a file can raise into a :class:`CheckpointError`.

    Args:
        name (str): Name of the file, for the message.

    Raises:
        CheckpointError: In place of any exception but those about missing files,
            permissions and packages, and :class:`InputError`.
    """
    try:
        yield
    except (FileNotFoundError, PermissionError, ImportError, InputError):
        raise
    except Exception as error:  # a damaged file can fail in any way
        raise CheckpointError(f'{name}: {why_unreadable(error)}') from error


# What the messages of PyTorch's unpickler and of ours say was refused
_REFUSED = re.compile(
    r'(?:nsupported (?:global: )?GLOBAL|Unsupported class|unrecognized (?:function|'
    r"class)|but got <class|for <class) ?'?<?"
    r"(?:built-in function |class ')?([\w.]+)")


def why_unreadable(error: Exception) -> str:
    """Say why a file cannot be read, without PyTorch's page of general advice.

    Args:
        error (Exception): What reading it has raised.

    Returns:
        str: The reason, with the name of what was refused, and the next step.
    """
    text = str(error)
    if 'TorchScript' in text:
        return ('holds a program (TorchScript), and nothing in a file is run; pass its '
                'weights')
    if 'legacy .tar format' in text:
        return ('is in the .tar format of PyTorch before 0.1.10, which cannot be read '
                'safely; get it in the format of a later version')
    refused = _REFUSED.search(text)
    if refused is None:
        detail = ' '.join(text.split('Weights only load failed')[0].split())
        return ('not a checkpoint, or an incomplete one; get the file again '
                f'({textwrap.shorten(f"{type(error).__name__} {detail}", 120)})')
    name = refused[1].rstrip('.')
    message = (f'holds a Python object of type {name}, and a file may hold only '
               'tensors and plain data; nothing in it was run. ')
    if not _can_be_allowed(name):
        return message + 'Get a file with the weights alone'
    return (f'{message}If you trust that class, allow it with {ALLOW_VARIABLE}={name} '
            'in the environment')


def _forget_programs(checkpoint: Any) -> Any:
    """Drop the config of an old checkpoint, which MMEngine would execute on resuming.

    ``Runner.resume`` runs the text in ``meta['config']`` as a Python file, to compare
    numbers of GPUs.
    """
    meta = checkpoint.get('meta') if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop('config', None)
    return checkpoint


def secure_mmengine() -> None:
    """Let everything that MMEngine loads be read by :func:`load_plain`.

    This also lets MMEngine <= 0.10.7 read its own checkpoints on PyTorch >= 2.6, and
    read local ``.safetensors`` files. Can be called repeatedly.
    """
    load = CheckpointLoader.load_checkpoint
    if hasattr(load, '__wrapped__'):
        return

    @functools.wraps(load)
    def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
        with plain_loading():
            return _forget_programs(load(*args, **kwargs))

    CheckpointLoader.load_checkpoint = staticmethod(load_checkpoint)


secure_mmengine()
