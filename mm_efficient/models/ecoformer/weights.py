"""EcoFormer: facts and published names, including PVTv2's and Twins-SVT's.

Names and shapes: https://github.com/ziplab/EcoFormer (Apache-2.0 licence), commit
a277f9e, and timm. There are three kinds, one per step of the published recipe:

- ordinary ImageNet weights of PVTv2 or Twins-SVT, in their authors' or timm's names;
- the same with softmax attention everywhere, the result of the first training stage;
- EcoFormer, with hash attention, the result of the second training stage.

The first two become the softmax form of our models, which a hash model can load too.
"""
import re
from dataclasses import dataclass

import torch

from ...weights.family import (
    Family,
    Layout,
    Reported,
    Source,
    Tensors,
    num_classes,
    register_family,
    top1,
)
from .backbone import EcoFormer, EcoFormerPVT, EcoFormerTwins

_RELEASE = 'https://github.com/ziplab/EcoFormer/releases/download/v1.0/'
# Our module of a block -> module of all published layouts, where the names differ
_MODULES = {'attn.qk': 'attn.to_qk', 'attn.v': 'attn.to_v'}
# Our buffer of a hash attention -> published buffer, and our part of it
_BUFFERS = {
    'attn.anchors': ('anchor', lambda x: x[0]),  # (1, H, m, d)
    'attn.kernel_mean': ('mvec', lambda x: x[0]),  # (1, H, 1, m)
    'attn.projection': ('A', lambda x: x),  # (H, b, m)
}
_IGNORED = {
    'hash': {
        r'.*\.fast_attention\.projection_matrix':
        'random features of another attention, which the original never uses'
    },
    'softmax': {},
    'reduced': {
        r'.*\.attn\.(sr|norm)\.(weight|bias)':
        'spatial reduction, which no model here has'
    },
}
_NOTES = {
    'hash': [],
    'softmax': [
        'softmax attention, what the training with hashing starts from: a model '
        'with attention=hash loads it and then has to be fitted; to use it as it '
        'is, set model.backbone.attention=softmax'
    ],
    'reduced': [
        'ImageNet weights with spatial reduction or windows: attention is another '
        'function without them, train with model.backbone.attention=softmax first'
    ],
}

REPORTED = Reported(
    figures=dict(
        ecoformer_pvt_b0=dict(cls=top1(70.44)),
        ecoformer_pvt_b1=dict(cls=top1(78.38)),
        ecoformer_pvt_b2=dict(cls=top1(81.28)),
        ecoformer_pvt_b3=dict(cls=top1(81.96)),
        ecoformer_pvt_b4=dict(cls=top1(81.90)),
        ecoformer_twins_s=dict(cls=top1(80.22))),
    sources=dict(cls='README of https://github.com/ziplab/EcoFormer'),
    notes=(
        'No detection or segmentation results were published, nor parameters and MACs.',
        'Energy, multiplications and additions by EcoFormer\'s own energy model '
        '(`tools/analysis_tools/get_energy.py`) match the reported ones, except the '
        'additions of B3: 6.72 G, reported as 6.75 G.'))


@dataclass(frozen=True)
class _Names:
    """Published names, with i for the stage from 0, n from 1, j for the block."""
    mark: str  # a tensor that identifies the layout
    block: str
    patch_embed: str
    dwconv: str = ''
    norm: str = ''  # at the end of a stage
    stem: str = ''  # patch embedding of stage 0, if it is not named as the others

    def of(self, part: str, stage: int, block: int | str | None = None) -> str:
        """Name of a part of a stage."""
        pattern = getattr(self, part)
        if part == 'patch_embed' and stage == 0 and self.stem:
            pattern = self.stem
        return pattern.format(i=stage, n=stage + 1, j=block)


@dataclass(frozen=True)
class _Body:
    """One of the two networks that EcoFormer is built on.

    Args:
        backbone (type): Our class.
        prefix (str): Prefix of its variants.
        layouts (dict[str, _Names]): The names by layout.
    """
    backbone: type[EcoFormer]
    prefix: str
    layouts: dict[str, _Names]


_BODIES = (
    _Body(EcoFormerPVT, 'ecoformer_pvt', {
        'published': _Names(
            mark='block1.0.mlp.dwconv.dwconv.weight',
            block='block{n}.{j}',
            patch_embed='patch_embed{n}',
            dwconv='block{n}.{j}.mlp.dwconv.dwconv',
            norm='norm{n}'),
        'timm': _Names(
            mark='stages.0.blocks.0.mlp.dwconv.weight',
            block='stages.{i}.blocks.{j}',
            patch_embed='stages.{i}.downsample',
            stem='patch_embed',
            dwconv='stages.{i}.blocks.{j}.mlp.dwconv',
            norm='stages.{i}.norm')
    }),
    _Body(EcoFormerTwins, 'ecoformer_twins', {  # timm has kept the names
        'published': _Names(
            mark='pos_block.0.proj.0.weight',
            block='blocks.{i}.{j}',
            patch_embed='patch_embeds.{i}')
    }),
)


@register_family
class EcoFormerFamily(Family):
    """EcoFormer on PVTv2 and on Twins-SVT."""

    name = 'EcoFormer'
    title = 'EcoFormer: Energy-Saving Attention with Linear Complexity'
    paper = 'https://arxiv.org/abs/2209.09004'
    venue = 'NeurIPS 2022'
    code = 'https://github.com/ziplab/EcoFormer'
    licence = 'Apache-2.0'
    variants = {
        f'{body.prefix}_{arch}': dict(type=body.backbone.__name__, arch=arch)
        for body in _BODIES for arch in body.backbone.ARCHS
    }
    downloads = {
        **{f'ecoformer_pvt_b{i}': f'{_RELEASE}pvtv2_b{i}_ecoformer.pth'
           for i in range(5)},
        'ecoformer_twins_s': f'{_RELEASE}twins_svt_s_ecoformer.pth'
    }
    files = {name: (url.rpartition('/')[2].removesuffix('.pth'), )
             for name, url in downloads.items()}
    reported = REPORTED
    references = {
        **{f'ecoformer_pvt_b{i}': f'pvtv2_b{i}_ecoformer' for i in range(5)},
        'ecoformer_twins_s': 'twins_svt_s_ecoformer'
    }

    def recognise(self, tensors: Tensors) -> Layout | None:
        """See :meth:`Family.recognise`."""
        for body in _BODIES:
            for layout, names in body.layouts.items():
                attention = _attention(names, tensors)
                if attention is not None:
                    return self._layout(body, layout, attention, tensors)
        return None

    def _layout(self, body: _Body, layout: str, attention: str,
                tensors: Tensors) -> Layout:
        names = body.layouts[layout]
        arch = self._arch(body, names, tensors)
        return Layout(
            arch=arch,
            model=self.classifier(
                dict(type=body.backbone.__name__, arch=arch,
                     attention='hash' if attention == 'hash' else 'softmax'),
                num_classes(tensors, 'head.weight', 'head.bias')),
            sources=lambda target: _source(names, tensors, target),
            variants=(f'{body.prefix}_{arch}', ),
            layout=layout,
            ignored=_IGNORED[attention],
            notes=_NOTES[attention])

    def _arch(self, body: _Body, names: _Names, tensors: Tensors) -> str:
        """Find the arch from the depths and the width of the first stage."""
        depths = []
        for stage in range(4):
            pattern = re.compile(names.of('block', stage, r'(\d+)') + r'\.')
            numbers = [int(m[1]) for m in map(pattern.match, tensors) if m]
            depths.append(max(numbers, default=-1) + 1)
        stem = tensors.get(names.of('patch_embed', 0) + '.proj.weight')
        archs = body.backbone.ARCHS
        if stem is None:  # the missing tensor is reported later
            widths = [s['embed_dims'][0] for s in archs.values()
                      if s['depths'] == depths]
        else:
            widths = [len(stem)]
        return self.find_arch((tuple(depths), *widths[:1]), {
            (tuple(settings['depths']), settings['embed_dims'][0]): arch
            for arch, settings in archs.items()},
            f'({body.backbone.__name__}: blocks per stage, width of the first)')


def _attention(names: _Names, tensors: Tensors) -> str | None:
    """'hash', 'softmax' or 'reduced', None if the tensors are not ours."""
    block = names.of('block', 0, 0)
    if f'{block}.attn.to_qk.weight' in tensors:
        return 'hash'
    if names.mark not in tensors or not (
            {f'{block}.attn.qkv.weight', f'{block}.attn.kv.weight'} & set(tensors)):
        return None
    reduced = any(key.endswith('.attn.kv.weight') for key in tensors)
    return 'reduced' if reduced else 'softmax'


def _source(names: _Names, tensors: Tensors, target: str) -> Source:
    """Published tensors for one key of our classifier."""
    if target.startswith('head.fc.'):
        return Source((target.replace('head.fc.', 'head.'),))
    key = target[len('backbone.'):]
    if key == 'fitted':
        return Source((), lambda: torch.tensor(True))
    if key.startswith('stem.'):
        return Source((key.replace('stem', names.of('patch_embed', 0)),))
    if key.startswith('norm3.'):  # Twins only
        return Source((key.replace('norm3', 'norm'),))
    number, part, rest = re.fullmatch(r'stages\.(\d)\.(\w+)\.(.+)', key).groups()
    stage = int(number)
    if part == 'blocks':
        return _block_source(names, tensors, stage, rest)
    if part == 'pos_conv':  # Twins only
        return Source((f'pos_block.{stage}.proj.0.{rest[len("conv."):]}',))
    part = dict(downsample='patch_embed', norm='norm')[part]
    return Source((f'{names.of(part, stage)}.{rest}',))


def _block_source(names: _Names, tensors: Tensors, stage: int, rest: str) -> Source:
    index, rest = rest.split('.', 1)
    block = names.of('block', stage, index)
    if rest in _BUFFERS:
        buffer, make = _BUFFERS[rest]
        return Source((f'{block}.attn.fast_attention.ksh.{buffer}',), make)
    module, leaf = rest.rsplit('.', 1)
    if module == 'attn.qkv' and f'{block}.attn.kv.{leaf}' in tensors:
        return Source((f'{block}.attn.q.{leaf}', f'{block}.attn.kv.{leaf}'),
                      lambda q, kv: torch.cat((q, kv)))
    if module == 'mlp.dwconv':
        return Source((f'{names.of("dwconv", stage, index)}.{leaf}',))
    return Source((f'{block}.{_MODULES.get(module, module)}.{leaf}',))
