"""The grid of configs that the registered families promise, for the tests beside it."""
import ast
import copy
import functools
import inspect
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from mm_efficient.weights import FAMILIES

CONFIGS = Path(__file__).parents[2] / 'configs'


# Further classifiers of a variant: suffix of its name -> backbone settings
EXTRAS = {'softmax': dict(attention='softmax'), 'r256': {}, 'r288': {}}
VARIANTS = {variant: backbone for family in FAMILIES
            for variant, backbone in family.variants.items()}
DENSE = {variant: family.dense for family in FAMILIES for variant in family.variants}
# The first variant of every backbone class stands for it
EXAMPLE_OF: dict[str, str] = {}
for _variant, _backbone in VARIANTS.items():
    EXAMPLE_OF.setdefault(_backbone['type'], _variant)
TASKS = dict(cls=r'\d+e', det='(retinanet|maskrcnn)_1x',
             seg=r'(upernet_160k|fpn_[48]0k)')


class Leaf(NamedTuple):
    """What the name of a config promises."""
    variant: str
    extra: str  # 'softmax', 'r256', ... or ''
    task: str
    method: str  # with the schedule

    @property
    def backbone(self):
        """Settings of the backbone."""
        dense = DENSE[self.variant] if self.task != 'cls' else {}
        return {**VARIANTS[self.variant], **dense, **EXTRAS.get(self.extra, {})}


def parse(name):
    """What a name promises; None if it is not of the grid."""
    task, stem = name.split('/')
    for variant in sorted(VARIANTS, key=len, reverse=True):
        match = re.fullmatch(rf'{variant}(?:_({"|".join(EXTRAS)}))?_({TASKS[task]})',
                             stem)
        if match:
            return Leaf(variant, match[1] or '', task, match[2])
    return None


def backbone_class(name):
    return MODELS.get(f'mmpretrain.{name}')


ON_DISK = sorted(
    path.relative_to(CONFIGS).with_suffix('').as_posix()
    for path in CONFIGS.glob('*/*.py') if path.parent.name != '_base_')
LEAVES = {name: parse(name) for name in ON_DISK}
EVERY_LEAF = pytest.mark.parametrize('name', ON_DISK)
EXAMPLES = [name for name, leaf in LEAVES.items()
            if leaf and leaf.variant in EXAMPLE_OF.values()]


@functools.cache
def load(name):
    return Config.fromfile(CONFIGS / f'{name}.py')


def build_model(name):
    config = load(name)
    with DefaultScope.overwrite_default_scope(config.default_scope):
        return MODELS.build(copy.deepcopy(config.model))


@functools.cache
def meta_model(name):
    with torch.device('meta'):
        return build_model(name).eval()


def meta_backbone(name):
    """The backbone alone: the configs that have the same one share it."""
    config = load(name)
    return _meta_backbone(repr(config.model.backbone.to_dict()), config.default_scope)


@functools.cache
def _meta_backbone(config, scope):
    with DefaultScope.overwrite_default_scope(scope), torch.device('meta'):
        return MODELS.build(ast.literal_eval(config)).eval()


def smallest(name):
    """The config of the same kind and method for the smallest variant of a family."""
    leaf = LEAVES[name]
    variant = EXAMPLE_OF[leaf.backbone['type']]
    extra = f'_{leaf.extra}' if leaf.extra else ''
    return f'{leaf.task}/{variant}{extra}_{leaf.method}'


# What a run reads of a config. The rest are names that other configs build on.
EXECUTED = {*inspect.signature(Runner.__init__).parameters, 'custom_imports', 'sync_bn'}


def differing_keys(first, second):
    """Keys at which two configs differ, entries of lists by their type."""
    return set(_differing(*({key: value for key, value in config.items()
                             if key in EXECUTED} for config in (first, second))))


def _differing(first, second, path=''):
    if isinstance(first, list) and isinstance(second, list):
        first, second = _by_type(first), _by_type(second)
        if [key for key in first if key in second] != [
                key for key in second if key in first]:
            yield path[1:]  # another order
    if isinstance(first, dict) and isinstance(second, dict):
        for key in first.keys() | second.keys():
            yield from _differing(first.get(key), second.get(key), f'{path}.{key}')
    elif first != second:
        yield path[1:]


def _by_type(entries):
    kinds = [e.get('type') if isinstance(e, dict) else None for e in entries]
    unique = None not in kinds and len(set(kinds)) == len(kinds)
    return dict(zip(kinds, entries)) if unique else entries
