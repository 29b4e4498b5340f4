"""Published weights: one module per family, one entry function.

A new family is one new module here that registers a
:class:`~.conversion.Family`; importing this package finds it.
"""
import pkgutil
from importlib import import_module

from .conversion import CheckpointError, Conversion, convert_checkpoint
from .files import convert_file, write_checkpoint
from .pretrained import (
    load_pretrained,
    load_weights,
    match_pretrained,
    match_state_dict,
    match_weights,
)

for _module in pkgutil.iter_modules(__path__):
    import_module(f'{__name__}.{_module.name}')

__all__ = [
    'CheckpointError', 'Conversion', 'convert_checkpoint', 'convert_file',
    'load_pretrained', 'load_weights', 'match_pretrained', 'match_state_dict',
    'match_weights', 'write_checkpoint'
]
