"""SOFT: facts, published names and download locations.

Names and shapes: https://github.com/fudan-zvg/SOFT (MIT License), commit
d3febc3. SOFT and SOFT-Norm files have the same names and shapes.
"""
import re
from collections.abc import Mapping
from typing import Any

import torch

from ...weights.family import (
    Family,
    Layout,
    Reported,
    Source,
    Tensors,
    box_ap,
    box_mask_ap,
    miou,
    num_classes,
    register_family,
    top1,
)
from .backbone import SOFT

# Our module in a block of stages 1 to 3 -> published module. Blocks of stage 4 have
# the same names in both, except for the projections to q, k and v.
_BLOCK = {
    'attn.q': 'att.mha.W_q',
    'attn.v': 'att.mha.W_v',
    'attn.landmark_conv': 'att.mha.attn.Qlandmark_op',
    'attn.landmark_norm': 'att.mha.attn.Qnorm_act.0',
    'attn.value_conv': 'att.mha.attn.conv',
    'attn.proj': 'att.mha.ff',
    'norm1': 'att.norm1',
    'norm2': 'att.norm2',
    'mlp.fc1': 'att.ff1',
    'mlp.fc2': 'att.ff2',
}

REPORTED = Reported(
    figures=dict(
        soft_tiny=dict(parameters='13M', macs='1.9G', cls=top1(79.3)),
        soft_tiny_norm=dict(
            parameters='13M', macs='1.9G', cls=top1(79.4), retinanet=box_ap(40.0),
            maskrcnn=box_mask_ap(41.2, 38.2)),
        soft_small=dict(parameters='24M', macs='3.3G', cls=top1(82.2)),
        soft_small_norm=dict(
            parameters='24M', macs='3.3G', cls=top1(82.4), retinanet=box_ap(42.8),
            maskrcnn=box_mask_ap(43.8, 40.1), upernet=miou(46.2)),
        soft_medium=dict(parameters='45M', macs='7.2G', cls=top1(82.9)),
        soft_medium_norm=dict(
            parameters='45M', macs='7.2G', cls=top1(83.1), retinanet=box_ap(44.3),
            maskrcnn=box_mask_ap(46.6, 42.0), upernet=miou(48.0)),
        soft_large=dict(parameters='64M', macs='11.0G', cls=top1(83.1)),
        soft_large_norm=dict(
            parameters='64M', macs='11.0G', cls=top1(83.3), retinanet=box_ap(45.3),
            maskrcnn=box_mask_ap(47.0, 42.2)),
        soft_huge=dict(parameters='87M', macs='16.3G', cls=top1(83.3)),
        soft_huge_norm=dict(parameters='87M', macs='16.3G', cls=top1(83.4))),
    sources=dict.fromkeys(('cls', 'retinanet', 'maskrcnn', 'upernet'),
                          'README of https://github.com/fudan-zvg/SOFT'),
    notes=(
        'The reported MACs cover convolutions and linear layers only, within 5 %; the '
        'measured ones cover all matmuls.',
        'The released code builds Small with 20 blocks in stage 3, which matches none '
        'of the reported figures; here that model is the arch `small_d20`.',
        'All COCO and ADE20K results are for SOFT-Norm.'),
    deviates=frozenset((f'soft_{arch}{norm}', 'macs')
                       for arch in ('tiny', 'small', 'medium', 'large', 'huge')
                       for norm in ('', '_norm')))


@register_family
class SOFTFamily(Family):
    """SOFT and SOFT-Norm, whose authors evaluate the averaged weights."""

    name = 'SOFT'
    title = 'SOFT: Softmax-free Transformer with Linear Complexity'
    paper = 'https://arxiv.org/abs/2110.11945'
    venue = 'NeurIPS 2021, IJCV 2024'
    code = 'https://github.com/fudan-zvg/SOFT'
    licence = 'MIT'
    variants = {
        f'soft_{arch}{suffix}': dict(type='SOFT', arch=arch, **settings)
        for arch in ('tiny', 'small', 'medium', 'large', 'huge')
        for suffix, settings in (('', {}), ('_norm', dict(normalized=True)))
    }
    dense = dict(pretrain_size=224)
    # Of plain SOFT and of Huge no others; the links lead to a file host's pages
    files = {
        'soft_tiny': ('SOFT_Tiny', ),
        **{f'soft_{arch.lower()}_norm': (f'SOFT_{arch}_norm', f'SOFT_Norm_{arch}')
           for arch in ('Tiny', 'Small', 'Medium', 'Large')}
    }
    entries = ('state_dict_ema', 'model_ema', 'state_dict', 'model')
    crops = dict.fromkeys(variants, 0.9)
    reported = REPORTED

    def classifier(self, backbone: Mapping[str, Any], classes: int = 1000) -> dict:
        """See :meth:`Family.classifier`; the head takes the class token."""
        cfg = super().classifier(dict(backbone, out_type='cls_token'), classes)
        del cfg['neck']
        return cfg

    def recognise(self, tensors: Tensors) -> Layout | None:
        """See :meth:`Family.recognise`."""
        if not any(key.startswith('block1.0.att.mha.') for key in tensors):
            return None
        arch = self._arch(tensors)
        name = arch.split('_')[0]
        notes = ['SOFT and SOFT-Norm have the same tensors: choose the config that '
                 'the weights were trained for (*_norm, i.e. normalized=True, for '
                 'SOFT-Norm)']
        if arch != name:
            notes.append(f'set model.backbone.arch={arch} in these configs')
        return Layout(
            arch=arch,
            model=self.classifier(dict(type='SOFT', arch=arch), num_classes(
                tensors, 'head.weight', 'head.bias')),
            sources=_sources,
            variants=(f'soft_{name}', f'soft_{name}_norm'),
            notes=notes)

    def _arch(self, tensors: Tensors) -> str:
        blocks = {match.groups() for match in map(
            re.compile(r'block(\d)\.(\d+)\.').match, tensors) if match}
        depths = tuple(
            1 + max((int(j) for i, j in blocks if i == stage), default=-1)
            for stage in '1234')
        return self.find_arch(depths, {
            tuple(settings['depths']): arch for arch, settings in SOFT.ARCHS.items()
        }, 'blocks per stage')


def _sources(target: str) -> Source:
    """Find the published tensors of a key of our classifier."""
    if target.startswith('head.fc.'):
        return Source((target.replace('head.fc.', 'head.'),))
    key = target[len('backbone.'):]
    if key.startswith('norm.'):
        return Source((key,))
    if key.startswith('stem.'):
        return Source((key.replace('stem.', 'patch_embed1.proj.'),))
    stage, rest = re.fullmatch(r'stages\.(\d)\.(.+)', key).groups()
    number = int(stage) + 1
    if rest == 'cls_token':
        return Source(('cls_token',))
    if rest == 'pos_embed':
        return Source((f'pos_embed{number}',))
    if rest.startswith('downsample.'):
        return Source(
            (rest.replace('downsample.', f'patch_embed{number}.proj.'),))
    index, module, leaf = re.fullmatch(
        r'blocks\.(\d+)\.(.+)\.(weight|bias)', rest).groups()
    block = f'block{number}.{index}'
    if number < 4:
        return Source((f'{block}.{_BLOCK[module]}.{leaf}',))
    if module == 'attn.qkv':
        return Source(
            (f'{block}.attn.q.{leaf}', f'{block}.attn.kv.{leaf}'),
            lambda q, kv: torch.cat((q, kv)))
    return Source((f'{block}.{module}.{leaf}',))
