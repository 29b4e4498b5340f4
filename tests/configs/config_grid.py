"""The grid of configs that the families promise, for the tests next to this file.

A new family adds its row to ``FAMILIES``.
"""
import ast
import copy
import functools
import inspect
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

import mm_efficient  # noqa: F401

CONFIGS = Path(__file__).parents[2] / 'configs'


class Family(NamedTuple):
    """How the configs of one backbone class are named, and what they declare."""
    prefix: str
    example: str  # small variant that stands for the family in training
    kinds: dict[str, dict] = {'': {}}  # suffix of the variant -> backbone settings
    outside: tuple[str, ...] = ()  # archs without configs
    pretrain_size: int | None = None  # of det and seg configs
    classifier_only: tuple[str, ...] = ()  # tensors that det and seg do not have
    cls: str = '300e'
    fpn: str = 'fpn_80k'
    # further classifiers: suffix of the variant, method, backbone settings
    more_cls: tuple[tuple[str, str, dict], ...] = ()
    warm_up: int = 0  # epochs on top of those in the name


FAMILIES = dict(
    SOFT=Family(
        prefix='soft',
        example='soft_tiny',
        kinds={
            '': dict(normalized=False),
            '_norm': dict(normalized=True)
        },
        outside=('small_d20', ),
        pretrain_size=224),
    SwiftFormer=Family(
        prefix='swiftformer', example='swiftformer_xs', fpn='fpn_40k'),
    EcoFormerPVT=Family(
        prefix='ecoformer_pvt', example='ecoformer_pvt_b0', cls='30e',
        more_cls=(('_softmax', '100e', dict(attention='softmax')), )),
    EcoFormerTwins=Family(
        prefix='ecoformer_twins', example='ecoformer_twins_s', cls='30e',
        more_cls=(('_softmax', '100e', dict(attention='softmax')), )),
    LowFormer=Family(prefix='lowformer', example='lowformer_b0', warm_up=20),
    ReduceFormer=Family(
        prefix='reduceformer', example='reduceformer_b1', pretrain_size=224,
        more_cls=(('_r256', '300e', {}), ('_r288', '300e', {})), warm_up=20))


class Leaf(NamedTuple):
    """What the name of a config promises."""
    family: str
    variant: str
    arch: str
    settings: dict
    task: str
    method: str


def backbone_class(family):
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.get(f'mmpretrain.{family}')


def expected_leaves():
    leaves = {}
    for name, family in FAMILIES.items():
        for arch in backbone_class(name).ARCHS:
            if arch in family.outside:
                continue
            for suffix, settings in family.kinds.items():
                variant = f'{family.prefix}_{arch}{suffix}'
                for task, method in (('cls', family.cls), ('det', 'retinanet_1x'),
                                     ('det', 'maskrcnn_1x'), ('seg', 'upernet_160k'),
                                     ('seg', family.fpn)):
                    leaves[f'{task}/{variant}_{method}'] = Leaf(
                        name, variant, arch, settings, task, method)
            for suffix, method, settings in family.more_cls:
                variant = f'{family.prefix}_{arch}{suffix}'
                leaves[f'cls/{variant}_{method}'] = Leaf(
                    name, variant, arch, settings, 'cls', method)
    return leaves


EXPECTED = expected_leaves()
ON_DISK = sorted(
    path.relative_to(CONFIGS).with_suffix('').as_posix()
    for path in CONFIGS.glob('*/*.py') if path.parent.name != '_base_')
EVERY_LEAF = pytest.mark.parametrize('name', ON_DISK)
EXAMPLES = [
    name for name, leaf in EXPECTED.items()
    if leaf.variant == FAMILIES[leaf.family].example
]


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
    leaf = EXPECTED[name]
    family = FAMILIES[leaf.family]
    kind = leaf.variant.removeprefix(f'{family.prefix}_{leaf.arch}')
    kind = '' if kind in family.kinds else kind
    return f'{leaf.task}/{family.example}{kind}_{leaf.method}'


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
