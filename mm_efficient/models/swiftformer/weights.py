"""SwiftFormer: facts, published and timm names, and download locations.

Names and shapes: https://github.com/Amshaker/SwiftFormer (Apache-2.0), commit
4aa6cd6; timm 1.0.31 (Apache-2.0).
"""
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...weights.family import (
    CheckpointError,
    Family,
    Layout,
    Reported,
    Source,
    Tensors,
    box_mask_ap,
    miou,
    num_classes,
    register_family,
    top1,
)
from .backbone import SwiftFormer

# Any of these tensor names identifies the last block of a stage.
_ENCODER = r'\d\.(blocks\.)?\d+\.(local_representation|attn\.w_g)\b.*'
_PUBLISHED = re.compile(rf'network\.{_ENCODER}')
_TIMM = re.compile(rf'stages\.{_ENCODER}')
_TRANSFORMERS = re.compile(rf'(swiftformer\.)?encoder\.network\.{_ENCODER}')

# Our module in a block -> published module; 1x1 convolutions of the attention
# were linears.
_CONV_BLOCK = {
    'dwconv': 'dwconv',
    'mlp.norm': 'norm',
    'mlp.fc1': 'pwconv1',
    'mlp.fc2': 'pwconv2',
    'layer_scale': 'layer_scale',
}
_ENCODER_BLOCK = {
    **{f'local.{ours}': f'local_representation.{theirs}'
       for ours, theirs in _CONV_BLOCK.items()},
    'attn.score_weight': 'attn.w_g',
    'attn.proj': 'attn.Proj',
    'attn.final': 'attn.final',
    'attn_scale': 'layer_scale_1',
    'mlp.norm': 'linear.norm1',
    'mlp.fc1': 'linear.fc1',
    'mlp.fc2': 'linear.fc2',
    'mlp_scale': 'layer_scale_2',
}
_LEAF = r'weight|bias|running_mean|running_var|num_batches_tracked'

REPORTED = Reported(
    figures=dict(
        swiftformer_xs=dict(parameters='3.5M', macs='0.6G', cls=top1(75.7)),
        swiftformer_s=dict(parameters='6.1M', macs='1.0G', cls=top1(78.5)),
        swiftformer_l1=dict(
            parameters='12.1M', macs='1.6G', cls=top1(80.9),
            maskrcnn=box_mask_ap(41.2, 38.1), fpn=miou(41.4)),
        swiftformer_l3=dict(
            parameters='28.5M', macs='4.0G', cls=top1(83.0),
            maskrcnn=box_mask_ap(42.7, 39.1), fpn=miou(43.9))),
    sources=dict(
        cls='README of https://github.com/Amshaker/SwiftFormer',
        maskrcnn='https://arxiv.org/abs/2303.15446, table 3',
        fpn='https://arxiv.org/abs/2303.15446, table 3'),
    notes=('Older copies of the reported table give XS 0.4 GMACs and L3 26.5 M '
           'parameters; the authors corrected both.', ))


@register_family
class SwiftFormerFamily(Family):
    """SwiftFormer, whose authors evaluate the weights, not their average."""

    name = 'SwiftFormer'
    title = ('SwiftFormer: Efficient Additive Attention for Transformer-based '
             'Real-time Mobile Vision Applications')
    paper = 'https://arxiv.org/abs/2303.15446'
    venue = 'ICCV 2023'
    code = 'https://github.com/Amshaker/SwiftFormer'
    licence = 'Apache-2.0'
    variants = {f'swiftformer_{arch}': dict(type='SwiftFormer', arch=arch)
                for arch in SwiftFormer.ARCHS}
    dense = dict(output_norm=True)
    # The authors' own files need a browser to download; timm's have the same tensors
    downloads = {f'swiftformer_{arch}': f'timm/swiftformer_{arch}.dist_in1k'
                 for arch in SwiftFormer.ARCHS}
    files = {f'swiftformer_{arch}': (f'SwiftFormer_{arch.upper()}_ckpt', )
             for arch in SwiftFormer.ARCHS}
    entries = ('model', 'state_dict', 'model_ema', 'state_dict_ema')
    reported = REPORTED

    def classifier(self, backbone: Mapping[str, Any], classes: int = 1000) -> dict:
        """See :meth:`Family.classifier`; the head has two linear layers."""
        cfg = super().classifier(backbone, classes)
        del cfg['neck']
        cfg['head']['type'] = 'DistilledClsHead'
        return cfg

    def recognise(self, tensors: Tensors) -> Layout | None:
        """See :meth:`Family.recognise`."""
        layout = self._layout(tensors)
        if layout is None:
            return None
        depths = self._depths(tensors, layout)
        arch = self.find_arch(depths, {
            tuple(settings['depths']): arch
            for arch, settings in SwiftFormer.ARCHS.items()}, 'blocks per stage')
        rename = _timm_name if layout == 'timm' else str

        def sources(target: str) -> Source:
            source = _source(target, depths)
            return source._replace(keys=tuple(map(rename, source.keys)))

        return Layout(
            arch=arch,
            model=self.classifier(dict(type='SwiftFormer', arch=arch), num_classes(
                tensors, 'head.weight', 'head.bias')),
            sources=sources,
            variants=(f'swiftformer_{arch}', ),
            layout=layout)

    def _layout(self, tensors: Tensors) -> str | None:
        """'published', 'timm' or None."""
        if any(map(_TRANSFORMERS.fullmatch, tensors)):
            raise CheckpointError(
                'SwiftFormer in the layout of Hugging Face transformers, a different '
                'operator: it weights every token by 1 instead of its L2-normalised '
                'score, so the same tensors compute other features. Pass the '
                "authors' file or timm's (swiftformer_*.dist_in1k)")
        for layout, pattern in (('published', _PUBLISHED), ('timm', _TIMM)):
            if any(map(pattern.fullmatch, tensors)):
                return layout
        return None

    def _depths(self, tensors: Tensors, layout: str) -> tuple[int, ...]:
        """Count the blocks of every stage that have tensors."""
        pattern = re.compile(r'network\.([0246])\.(\d+)\.' if layout ==
                             'published' else r'stages\.(\d)\.blocks\.(\d+)\.')
        blocks = [match.groups() for match in map(pattern.match, tensors) if match]
        return tuple(
            1 + max((int(j) for i, j in blocks if i == stage), default=-1)
            for stage in ('0246' if layout == 'published' else '0123'))


def _source(target: str, depths: Sequence[int]) -> Source:
    """Find the published tensors of a key of our classifier."""
    for ours, theirs in (('head.fc.', 'head.'), ('head.fc_dist.', 'dist_head.'),
                         ('head.norm.', 'norm.'),
                         ('backbone.stem.', 'patch_embed.')):
        if target.startswith(ours):
            return Source((target.replace(ours, theirs, 1),))
    stage, rest = re.fullmatch(r'backbone\.stages\.(\d)\.(.+)', target).groups()
    stage = int(stage)
    if rest.startswith('downsample.'):
        kind, leaf = rest.removeprefix('downsample.').split('.')
        return Source(
            (f'network.{2 * stage - 1}.{("proj", "norm")[int(kind)]}.{leaf}',))
    index, module, leaf = re.fullmatch(
        rf'blocks\.(\d+)\.(.+?)((?:\.(?:{_LEAF}))?)', rest).groups()
    block = f'network.{2 * stage}.{index}'
    if module == 'attn.qk':
        return Source(
            (f'{block}.attn.to_query{leaf}', f'{block}.attn.to_key{leaf}'),
            lambda query, key: _as_1x1(torch.cat((query, key))))
    last = int(index) == depths[stage] - 1
    key = f'{block}.{(_ENCODER_BLOCK if last else _CONV_BLOCK)[module]}{leaf}'
    if module in ('attn.proj', 'attn.final'):
        return Source((key,), _as_1x1)
    return Source((key,))


def _as_1x1(tensor: Tensor) -> Tensor:
    """Reshape a linear layer's weight for a 1x1 convolution; leave biases alone."""
    return tensor[:, :, None, None] if tensor.ndim == 2 else tensor


def _timm_name(key: str) -> str:
    """timm's name of a published tensor."""
    key = re.sub(r'^network\.(\d)\.', _timm_stage, key)
    key = re.sub(r'\.(layer_scale(_[12])?)$', r'.\1.gamma', key)
    for theirs, timm in (('patch_embed.', 'stem.'), ('dist_head.', 'head_dist.'),
                         ('.attn.Proj.', '.attn.proj.')):
        key = key.replace(theirs, timm)
    return key


def _timm_stage(match: re.Match) -> str:
    stage, between = divmod(int(match[1]), 2)
    return f'stages.{stage + 1}.downsample.' if between else f'stages.{stage}.blocks.'
