"""Published SOFT checkpoints.

Names and shapes: https://github.com/fudan-zvg/SOFT (MIT License), commit
d3febc3. SOFT and SOFT-Norm files have the same names and shapes.
"""
import re

import torch

from .conversion import CheckpointError, Family, Layout, Source, register_family

# Our module in a block of stages 1 to 3 -> published module. Stage 4 blocks
# have the same names in both, except for the projections to q, k and v.
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


@register_family
class SOFT(Family):
    """SOFT and SOFT-Norm, whose authors evaluate the averaged weights."""

    name = 'SOFT'
    entries = ('state_dict_ema', 'model_ema', 'state_dict', 'model')

    def recognise(self, tensors):
        """See :meth:`Family.recognise`."""
        if not any(key.startswith('block1.0.att.mha.') for key in tensors):
            return None
        arch = self._arch(tensors)
        head = tensors.get('head.weight', tensors.get('head.bias'))
        num_classes = 1000 if head is None else head.shape[0]
        name = arch.split('_')[0]
        notes = ['the tensors do not tell SOFT from SOFT-Norm: choose the '
                 'config of the family that the authors trained them for '
                 '(*_norm for SOFT-Norm, i.e. normalized=True)']
        if arch != name:
            notes.append(f'set model.backbone.arch={arch} in these configs')
        if num_classes != 1000:
            notes.append(
                f'set model.head.num_classes={num_classes} in these configs')
        return Layout(
            arch=arch,
            model=dict(
                type='ImageClassifier',
                backbone=dict(type='SOFT', arch=arch, out_type='cls_token'),
                head=dict(type='LinearClsHead', in_channels=512,
                          num_classes=num_classes)),
            sources=_sources,
            configs=[f'configs/cls/soft_{name}_300e.py',
                     f'configs/cls/soft_{name}_norm_300e.py'],
            notes=notes)

    def _arch(self, tensors):
        from ..models.soft import SOFT as Backbone
        blocks = {match.groups() for match in map(
            re.compile(r'block(\d)\.(\d+)\.').match, tensors) if match}
        depths = tuple(
            1 + max((int(j) for i, j in blocks if i == stage), default=-1)
            for stage in '1234')
        known = {tuple(settings['depths']): arch
                 for arch, settings in Backbone.ARCHS.items()}
        if depths not in known:
            raise CheckpointError(
                f'SOFT with {depths} blocks per stage; published are '
                f'{", ".join(f"{a} {d}" for d, a in known.items())}. Get the '
                'complete file that the authors published')
        return known[depths]


def _sources(target):
    """Published tensors for one key of our classifier."""
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
