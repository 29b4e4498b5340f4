"""LowFormer: facts, published and timm names, and download locations.

Names and shapes: https://github.com/altair199797/LowFormer (Apache-2.0), commit
661dd34, and timm 1.0.31 (Apache-2.0).
"""
import re
from collections.abc import Callable

from ...weights.family import (
    Layout,
    Reported,
    Source,
    Tensors,
    box_ap,
    miou,
    register_family,
    top1,
)
from ..efficientvit.weights import (
    EfficientViTFamily,
    block_counts,
    head_settings,
    published_name,
)
from .backbone import LowFormer

_BLOCK = {
    'attn.body': 'total.0.0.main',
    'mlp.body': 'total.0.1.main',
    'local.body': 'total.1.main',
    'reduce': 'conv_proj',
    'qkv': 'pwise.0',
    'proj': 'upsampling',
}
# Parts of published names -> parts of timm's
_TIMM = {
    r'^backbone\.': '',
    r'^input_stem\.op_list': 'stem',
    r'^(stages\.\d)\.op_list': r'\1',
    r'total\.0\.0\.main': 'attn.main',
    r'total\.0\.1\.main': 'mlp.main',
    r'total\.0\.main': 'attn.main',
    r'total\.1\.main': 'local.main',
    r'conv_proj\.0': 'conv_proj.conv',
    r'conv_proj\.1': 'conv_proj.norm',
    r'pwise\.0': 'pwise',
    r'^head\.op_list\.0': 'in_conv',
    r'^head\.op_list\.2\.linear': 'pre_classifier.0',
    r'^head\.op_list\.2\.norm': 'pre_classifier.1',
    r'^head\.op_list\.3\.linear': 'classifier',
}

REPORTED = Reported(
    figures=dict(
        lowformer_b0=dict(
            parameters='14.1M', macs='944M', cls=top1(78.4), retinanet=box_ap(38.6)),
        lowformer_b1=dict(
            parameters='17.9M', macs='1410M', cls=top1(79.9), retinanet=box_ap(39.4),
            fpn=miou(39.7)),
        lowformer_b15=dict(parameters='33.9M', macs='2573M', cls=top1(81.2)),
        lowformer_b2=dict(retinanet=box_ap(41.4), fpn=miou(42.8)),
        lowformer_b3=dict(
            parameters='57.1M', macs='6098M', cls=top1(83.6), retinanet=box_ap(43.1),
            fpn=miou(44.6)),
        lowformer_e1=dict(macs='1350M', cls=top1(78.8)),
        lowformer_e2=dict(macs='3800M', cls=top1(81.6)),
        lowformer_e3=dict(macs='5350M', cls=top1(83.0))),
    sources=dict(
        cls='README of https://github.com/altair199797/LowFormer',
        retinanet='https://arxiv.org/abs/2409.03460',
        fpn='https://arxiv.org/abs/2409.03460'),
    notes=(
        'E1 to E3 are from the journal extension (https://arxiv.org/abs/2603.26551).',
        'The 5350 M MACs reported for E3 do not match its released configuration.',
        'The released code defines B2 in three ways. Ours is that of its package and '
        'of timm; which one the reported results belong to is unknown.',
        'Detection and segmentation results are in the paper only; their settings were '
        'not released.'),
    deviates=frozenset({('lowformer_e3', 'macs')}))


@register_family
class LowFormerFamily(EfficientViTFamily):
    """LowFormer: published names, those of its TorchScript head, timm's."""

    name = 'LowFormer'
    title = ('LowFormer: Hardware Efficient Design for Convolutional Transformer '
             'Backbones')
    paper = 'https://arxiv.org/abs/2409.03460'
    venue = 'WACV 2025'
    code = 'https://github.com/altair199797/LowFormer'
    licence = 'Apache-2.0'
    variants = {f'lowformer_{arch}': dict(type='LowFormer', arch=arch)
                for arch in LowFormer.ARCHS}
    downloads = {f'lowformer_{arch}': f'timm/lowformer_{arch}.in1k'
                 for arch in LowFormer.ARCHS if arch != 'b2'}  # timm has no b2
    crops = dict.fromkeys(variants, 0.95)
    wide = ('b15', 'b2', 'e1')
    reported = REPORTED

    def recognise(self, tensors: Tensors) -> Layout | None:
        """See :meth:`Family.recognise`."""
        layout, rename = _layout(tensors)
        if layout is None:
            return None
        arch = self._arch(tensors, rename)
        settings = LowFormer.ARCHS[arch]
        model = self.classifier(dict(type='LowFormer', arch=arch))
        model['head'].update(head_settings(tensors, rename))
        notes = []
        if arch == 'b2':
            notes.append('the authors published no results for b2 and define it in '
                         'several ways; this is the one that timm has')
        return Layout(
            arch=arch,
            model=model,
            sources=lambda target: Source((rename(_name(target, settings['mlp'])), )),
            variants=(f'lowformer_{arch}', ),
            layout=layout,
            notes=notes)

    def _arch(self, tensors: Tensors, rename: Callable[[str], str]) -> str:
        width = tensors.get(
            rename('backbone.stages.0.op_list.0.main.point_conv.conv.weight'))
        found = (
            None if width is None else len(width), block_counts(tensors),
            any(key.endswith('.upsampling.weight') for key in tensors),
            any(re.search(r'\b(total\.0\.1|mlp)\.main\.1\.weight$', key)
                for key in tensors))
        return self.find_arch(found, {
            (settings['embed_dims'][0], tuple(settings['depths']),
             settings['attention'], settings['mlp']): arch
            for arch, settings in LowFormer.ARCHS.items()},
            '(channels of stage 1, blocks after the first of every stage, attention, '
            'MLP)')


def _layout(tensors: Tensors) -> tuple[str | None, Callable[[str], str]]:
    """Return the layout, and a function from published names to those of the file."""
    if any(re.match(r'stages\.[23]\.\d+\.local\.main\.', key) for key in tensors):
        return 'timm', _timm_name
    if not any(re.match(r'backbone\.stages\.[23]\.op_list\.\d+\.total\.', key)
               for key in tensors):
        return None, str
    if any(key.startswith('head.opseq.') for key in tensors):
        return 'published (TorchScript head)', lambda name: re.sub(
            r'^head\.', 'head.opseq.', name)
    return 'published', str


def _name(target: str, has_mlp: bool) -> str:
    """Return the published name of a key of our classifier."""
    name = published_name(target)
    if re.match(r'backbone\.stages\.[23]\.op_list\.[1-9]', name):
        for ours, published in _BLOCK.items():
            name = re.sub(rf'\.{ours}\b', f'.{published}', name)
        if not has_mlp:  # attention without a norm is one level higher
            name = name.replace('.total.0.0.main', '.total.0.main')
    return name


def _timm_name(name: str) -> str:
    for pattern, replacement in _TIMM.items():
        name = re.sub(pattern, replacement, name)
    return name
