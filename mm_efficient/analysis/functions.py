"""Models that a function of anybody's code returns."""
import functools
import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

from torch import nn

from ..errors import InputError, did_you_mean, explain


def build_from(name: str) -> nn.Module:
    """Build the model that a function returns.

    Args:
        name (str): ``FILE.py:FUNCTION`` or ``PACKAGE.MODULE:FUNCTION``. The folder of
            the file, or the current folder, is importable. The function is called
            without arguments.

    Returns:
        nn.Module: Its result.

    Raises:
        InputError: If there is no such file, module or function, or it returns
            something else.
        ExecutionError: If the module cannot be imported, or the function fails.
    """
    source, _, function = name.rpartition(':')
    module = import_source(source)
    build = getattr(module, function, None)
    if not callable(build):
        functions = [key for key, value in vars(module).items() if callable(value)]
        raise InputError(f'{source} has no function {function!r}'
                         f'{did_you_mean(function, functions)}.')
    with explain(f'{name}() fails', 'It is called without arguments: wrap it in a '
                 'function that needs none'):
        model = build()
    if not isinstance(model, nn.Module):
        raise InputError(f'{name} has to return an nn.Module, got a '
                         f'{type(model).__name__}.')
    return model


@functools.cache
def import_source(source: str) -> ModuleType:
    """Import a file or a module, and what lies beside it.

    Args:
        source (str): ``FILE.py``, or ``PACKAGE.MODULE``.

    Returns:
        ModuleType: The module.

    Raises:
        InputError: If there is no such file.
        ExecutionError: If it cannot be imported.
    """
    path = Path(source).resolve()
    is_file = source.endswith('.py')
    if is_file and not path.is_file():
        raise InputError(f'{source} does not exist; expected FILE.py:FUNCTION.')
    folder = str(path.parent if is_file else Path.cwd())
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with explain(f'{source} cannot be imported'):
        if not is_file:
            return importlib.import_module(source)
        spec = importlib.util.spec_from_file_location(str(path), path)
        assert spec is not None and spec.loader is not None  # it is a Python file
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look there
        spec.loader.exec_module(module)
        return module
