"""Compiled operators of MMCV that a model calls and this installation lacks."""
import inspect
import re
import sys
from importlib import import_module
from typing import Any

from mmengine.config import Config
from mmengine.registry import DefaultScope

from ..runs.model_checks import build_on_meta
from ..runs.traversal import nested_dicts, type_name

# Operators that settings ask for, not modules: type or mode -> operator
_BY_NAME = {'ScoreHLRSampler': 'nms_match', 'soft_nms': 'softnms',
            'nms_rotated': 'nms_rotated'}


def missing_operators(cfg: Config) -> list[str]:
    """Name the operators that training or testing would call in vain.

    Args:
        cfg (Config): A config whose model can be built.

    Returns:
        list[str]: Such as 'deform_conv_forward', sorted; empty if all are there.
    """
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = build_on_meta(cfg.model)
    files = {kind.__module__ for module in model.modules()
             for kind in type(module).__mro__
             if kind.__module__.startswith('mmcv.ops.')}
    names = {name for file in files for name in _operators(file)}
    names |= {_BY_NAME[type_name(part)] for part in nested_dicts(cfg.model)
              if type_name(part) in _BY_NAME}
    return sorted(name for name in names if _is_missing(name))


def _operators(file: str) -> list[str]:
    """Operators that a module of ``mmcv.ops`` loads."""
    source = inspect.getsource(sys.modules[file])
    found = re.search(r"load_ext\(\s*'_ext',\s*\[(.*?)\]", source, re.DOTALL)
    return re.findall(r"'(\w+)'", found[1]) if found else []


def _is_missing(name: str) -> bool:
    """Whether a call of an operator raises that it is missing."""
    operator: Any = getattr(import_module('mmcv._ext'), name, None)
    return operator is None or (
        getattr(operator, '__module__', '').startswith('mm_efficient')
        and '<locals>' in operator.__qualname__)
