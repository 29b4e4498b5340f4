"""EcoFormer checkpoints, and those of the PVTv2 and Twins-SVT it starts from.

Names and shapes: https://github.com/ziplab/EcoFormer (Apache-2.0 licence), commit
a277f9e, and timm. There are three kinds, one for every step of the published recipe:

- ordinary ImageNet weights of PVTv2 or Twins-SVT, in their authors' or timm's names;
- the same with softmax attention everywhere, the result of the first training;
- EcoFormer, with hash attention, the result of the second training.

The first two become the softmax form of our models, which a hash model can load too.
"""
import re
from dataclasses import dataclass

import torch

from .conversion import CheckpointError, Family, Layout, Source, register_family

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


@dataclass(frozen=True)
class _Names:
    """Published names, with i for the stage from 0, n from 1, j for the block."""
    mark: str  # a tensor by which the layout is told
    block: str
    patch_embed: str
    dwconv: str = ''
    norm: str = ''  # at the end of a stage
    stem: str = ''  # patch embedding of stage 0, if it is not named as the others

    def of(self, part, stage, block=None):
        """Name of a part of a stage."""
        pattern = getattr(self, part)
        if part == 'patch_embed' and stage == 0 and self.stem:
            pattern = self.stem
        return pattern.format(i=stage, n=stage + 1, j=block)


class _EcoFormer(Family):
    """The part that both bodies share.

    Attributes:
        backbone (str): Our class.
        config (str): Prefix of our configs.
        layouts (dict[str, _Names]): The names by layout.
    """

    backbone: str
    config: str
    layouts: dict[str, _Names]

    def recognise(self, tensors):
        """See :meth:`Family.recognise`."""
        for layout, names in self.layouts.items():
            attention = self._attention(names, tensors)
            if attention is not None:
                return self._layout(layout, names, attention, tensors)
        return None

    def _attention(self, names, tensors):
        """'hash', 'softmax' or 'reduced', None if the tensors are not ours."""
        block = names.of('block', 0, 0)
        if f'{block}.attn.to_qk.weight' in tensors:
            return 'hash'
        if names.mark not in tensors or not (
                {f'{block}.attn.qkv.weight', f'{block}.attn.kv.weight'} & set(tensors)):
            return None
        reduced = any(key.endswith('.attn.kv.weight') for key in tensors)
        return 'reduced' if reduced else 'softmax'

    def _layout(self, layout, names, attention, tensors):
        arch, widths = self._arch(names, tensors)
        head = tensors.get('head.weight', tensors.get('head.bias'))
        num_classes = 1000 if head is None else head.shape[0]
        notes = list(_NOTES[attention])
        if num_classes != 1000:
            notes.append(f'set model.head.num_classes={num_classes} in these configs')
        return Layout(
            arch=arch,
            model=dict(
                type='ImageClassifier',
                backbone=dict(type=self.backbone, arch=arch,
                              attention='hash' if attention == 'hash' else 'softmax'),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead', in_channels=widths[-1],
                          num_classes=num_classes)),
            sources=lambda target: self._source(names, tensors, target),
            configs=[f'configs/cls/{self.config}_{arch}_30e.py'],
            layout=layout,
            ignored=_IGNORED[attention],
            notes=notes)

    def _arch(self, names, tensors):
        """The variant and its widths, from depths and width of the first stage."""
        from .. import models
        archs = getattr(models, self.backbone).ARCHS
        stem = tensors.get(names.of('patch_embed', 0) + '.proj.weight')
        depths = []
        for stage in range(4):
            pattern = re.compile(names.of('block', stage, r'(\d+)') + r'\.')
            numbers = [int(m[1]) for m in map(pattern.match, tensors) if m]
            depths.append(max(numbers, default=-1) + 1)
        for arch, settings in archs.items():
            if settings['depths'] == depths and (
                    stem is None or len(stem) == settings['embed_dims'][0]):
                return arch, settings['embed_dims']
        known = ', '.join(f'{arch} {s["depths"]} ({s["embed_dims"][0]} wide)'
                          for arch, s in archs.items())
        raise CheckpointError(
            f'{self.name} with {depths} blocks per stage'
            + ('' if stem is None else f', {len(stem)} wide')
            + f'; published are {known}. Get the complete file that the authors '
            'published')

    def _source(self, names, tensors, target):
        """Published tensors for one key of our classifier."""
        if target.startswith('head.fc.'):
            return Source((target.replace('head.fc.', 'head.'),))
        key = target[len('backbone.'):]
        if key == 'fitted':
            return Source((), lambda: torch.tensor(True))
        if key.startswith('stem.'):
            return Source((key.replace('stem', names.of('patch_embed', 0)),))
        if key.startswith('norm3.'):  # of Twins
            return Source((key.replace('norm3', 'norm'),))
        stage, part, rest = re.fullmatch(r'stages\.(\d)\.(\w+)\.(.+)', key).groups()
        stage = int(stage)
        if part == 'blocks':
            return self._block_source(names, tensors, stage, rest)
        if part == 'pos_conv':  # of Twins
            return Source((f'pos_block.{stage}.proj.0.{rest[len("conv."):]}',))
        part = dict(downsample='patch_embed', norm='norm')[part]
        return Source((f'{names.of(part, stage)}.{rest}',))

    def _block_source(self, names, tensors, stage, rest):
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


@register_family
class EcoFormerPVT(_EcoFormer):
    """EcoFormer on PVTv2."""

    name = 'EcoFormerPVT'
    backbone = 'EcoFormerPVT'
    config = 'ecoformer_pvt'
    online = {f'ecoformer_pvt_b{i}': f'{_RELEASE}pvtv2_b{i}_ecoformer.pth'
              for i in range(5)}
    layouts = {
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
            norm='stages.{i}.norm'),
    }


@register_family
class EcoFormerTwins(_EcoFormer):
    """EcoFormer on Twins-SVT, whose names timm has kept."""

    name = 'EcoFormerTwins'
    backbone = 'EcoFormerTwins'
    config = 'ecoformer_twins'
    online = {'ecoformer_twins_s': f'{_RELEASE}twins_svt_s_ecoformer.pth'}
    layouts = {
        'published': _Names(
            mark='pos_block.0.proj.0.weight',
            block='blocks.{i}.{j}',
            patch_embed='patch_embeds.{i}'),
    }
