"""ReduceFormer: facts, and the names that the published trainer writes.

Names and shapes: https://github.com/NVIDIA/DL4AGX, Models/ReduceFormer, commit
f777401. The authors published no weights; these are what their code writes.
"""
import re

from ...weights.family import (
    CheckpointError,
    Layout,
    Reported,
    Source,
    Tensors,
    register_family,
    top1,
)
from ..efficientvit.weights import (
    EfficientViTFamily,
    block_counts,
    head_settings,
    published_name,
)
from .backbone import ReduceFormer

_BLOCK = {
    'attn.body': 'context_module.main',
    'local.body': 'local_module.main',
    'qkv': 'qkv.conv',
    'local': 'aggreg.0.0',
    'proj.0': 'proj.conv',
    'proj.1': 'proj.norm',
}

REPORTED = Reported(
    figures=dict(
        reduceformer_b1=dict(parameters='9.0M', macs='0.52G', cls=top1(79.3),
                             r256=top1(80.1), r288=top1(80.6)),
        reduceformer_b2=dict(parameters='24.5M', macs='1.68G', cls=top1(81.9),
                             r256=top1(82.6), r288=top1(83.0)),
        reduceformer_b3=dict(parameters='48.1M', macs='3.87G', cls=top1(83.4),
                             r256=top1(83.6), r288=top1(84.2))),
    sources=dict.fromkeys(
        ('cls', 'r256', 'r288'),
        'README of https://github.com/NVIDIA/DL4AGX, Models/ReduceFormer'),
    notes=(
        'The reported MACs include norms, activations and biases (up to 3 % more).',
        'The parameters and MACs reported for B2 do not match the released code, which '
        'has 24.0 M parameters.',
        'No weights were published, nor detection or segmentation results.'),
    deviates=frozenset(('reduceformer_b2', key) for key in ('parameters', 'macs')))


@register_family
class ReduceFormerFamily(EfficientViTFamily):
    """ReduceFormer, and EfficientViT's names where they mean another operator."""

    name = 'ReduceFormer'
    title = 'ReduceFormer: Attention with Tensor Reduction by Summation'
    paper = 'https://arxiv.org/abs/2406.07488'
    venue = 'CVPR 2024 workshop'
    code = 'https://github.com/NVIDIA/DL4AGX/tree/master/Models/ReduceFormer'
    licence = 'Apache-2.0 text, non-commercial according to its README'
    variants = {f'reduceformer_{arch}': dict(type='ReduceFormer', arch=arch)
                for arch in ReduceFormer.ARCHS}
    dense = dict(pretrain_size=224)
    crops = dict(reduceformer_b1=0.95, reduceformer_b2=1., reduceformer_b3=1.)
    wide = ('b2', 'b3')
    reported = REPORTED

    def recognise(self, tensors: Tensors) -> Layout | None:
        """See :meth:`Family.recognise`."""
        if not any('.context_module.main.aggreg.0.0.' in key for key in tensors):
            return None
        if any('.context_module.main.aggreg.0.1.' in key for key in tensors):
            raise CheckpointError(
                'holds weights of EfficientViT: its names are those of ReduceFormer, '
                'but its attention has one more convolution (aggreg.0.1) and other '
                'channels in qkv. They cannot be used for ReduceFormer')
        arch = self.find_arch(block_counts(tensors), {
            tuple(settings['depths']): arch
            for arch, settings in ReduceFormer.ARCHS.items()},
            'blocks after the first of every stage')
        model = self.classifier(dict(type='ReduceFormer', arch=arch))
        model['head'].update(head_settings(tensors))
        return Layout(
            arch=arch,
            model=model,
            sources=lambda target: Source((_name(target), )),
            variants=(f'reduceformer_{arch}', ))


def _name(target: str) -> str:
    """Return the published name of a key of our classifier."""
    name = published_name(target)
    if re.match(r'backbone\.stages\.[23]\.op_list\.[1-9]', name):
        for ours, published in _BLOCK.items():
            name = re.sub(rf'\.{ours}\b', f'.{published}', name)
    return name
