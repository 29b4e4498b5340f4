"""ReduceFormer checkpoints of the published trainer.

Names and shapes: https://github.com/NVIDIA/DL4AGX, Models/ReduceFormer, commit
f777401. The authors published no weights; these are what their code writes.
"""
import re

from .conversion import CheckpointError, Family, Layout, Source, register_family
from .efficientvit import block_counts, head_settings, published_name

_BLOCK = {
    'attn.body': 'context_module.main',
    'local.body': 'local_module.main',
    'qkv': 'qkv.conv',
    'local': 'aggreg.0.0',
    'proj.0': 'proj.conv',
    'proj.1': 'proj.norm',
}


@register_family
class ReduceFormer(Family):
    """ReduceFormer, and EfficientViT's names where they mean another operator."""

    name = 'ReduceFormer'

    def recognise(self, tensors):
        """See :meth:`Family.recognise`."""
        if not any('.context_module.main.aggreg.0.0.' in key for key in tensors):
            return None
        if any('.context_module.main.aggreg.0.1.' in key for key in tensors):
            raise CheckpointError(
                'holds weights of EfficientViT: its names are those of ReduceFormer, '
                'but its attention has one more convolution (aggreg.0.1) and other '
                'channels in qkv. They cannot be used for ReduceFormer')
        arch, dims = self._arch(tensors)
        head = head_settings(tensors)
        notes = []
        if head['num_classes'] != 1000:
            notes.append(
                f'set model.head.num_classes={head["num_classes"]} in this config')
        return Layout(
            arch=arch,
            model=dict(
                type='ImageClassifier',
                backbone=dict(type='ReduceFormer', arch=arch),
                head=dict(type='EfficientViTClsHead', in_channels=dims, **head)),
            sources=lambda target: Source((_name(target), )),
            configs=[f'configs/cls/reduceformer_{arch}_300e.py'],
            notes=notes)

    def _arch(self, tensors):
        """Variant and its last width."""
        from ..models.reduceformer import ReduceFormer as Backbone
        depths = block_counts(tensors)
        known = {tuple(settings['depths']): arch
                 for arch, settings in Backbone.ARCHS.items()}
        if depths not in known:
            raise CheckpointError(
                f'ReduceFormer with {depths} blocks after the first of every stage; '
                f'published are {", ".join(f"{a} {d}" for d, a in known.items())}. '
                "Get the complete file that the authors' code wrote")
        arch = known[depths]
        return arch, Backbone.ARCHS[arch]['embed_dims'][-1]


def _name(target):
    """Published name of one key of our classifier."""
    name = published_name(target)
    if re.match(r'backbone\.stages\.[23]\.op_list\.[1-9]', name):
        for ours, published in _BLOCK.items():
            name = re.sub(rf'\.{ours}\b', f'.{published}', name)
    return name
