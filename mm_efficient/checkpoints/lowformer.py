"""Published LowFormer checkpoints, and timm's.

Names and shapes: https://github.com/altair199797/LowFormer (Apache-2.0), commit
661dd34, and timm 1.0.31 (Apache-2.0).
"""
import re

from .conversion import CheckpointError, Family, Layout, Source, register_family
from .efficientvit import block_counts, head_settings, published_name

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


@register_family
class LowFormer(Family):
    """LowFormer: published names, those of its TorchScript head, timm's."""

    name = 'LowFormer'
    # What timm has, all but b2
    online = {f'lowformer_{arch}': f'timm/lowformer_{arch}.in1k'
              for arch in ('b0', 'b1', 'b15', 'b3', 'e1', 'e2', 'e3')}

    def recognise(self, tensors):
        """See :meth:`Family.recognise`."""
        layout, rename = _layout(tensors)
        if layout is None:
            return None
        arch, dims, has_mlp = self._arch(tensors, rename)
        head = head_settings(tensors, rename)
        notes = []
        if arch == 'b2':
            notes.append('the authors published no results of b2, and define it in '
                         'several ways; this is the one that timm has, too')
        if head['num_classes'] != 1000:
            notes.append(
                f'set model.head.num_classes={head["num_classes"]} in this config')
        return Layout(
            arch=arch,
            model=dict(
                type='ImageClassifier',
                backbone=dict(type='LowFormer', arch=arch),
                head=dict(type='EfficientViTClsHead', in_channels=dims, **head)),
            sources=lambda target: Source((rename(_name(target, has_mlp)), )),
            configs=[f'configs/cls/lowformer_{arch}_300e.py'],
            layout=layout,
            notes=notes)

    def _arch(self, tensors, rename):
        """Variant, its last width and whether it has MLPs."""
        from ..models.lowformer import LowFormer as Backbone
        width = tensors.get(
            rename('backbone.stages.0.op_list.0.main.point_conv.conv.weight'))
        found = (
            None if width is None else len(width), block_counts(tensors),
            any(key.endswith('.upsampling.weight') for key in tensors),
            any(re.search(r'\b(total\.0\.1|mlp)\.main\.1\.weight$', key)
                for key in tensors))
        known = {(settings['embed_dims'][0], tuple(settings['depths']),
                  settings['attention'], settings['mlp']): arch
                 for arch, settings in Backbone.ARCHS.items()}
        if found not in known:
            raise CheckpointError(
                'LowFormer of no known variant; (channels of stage 1, blocks after '
                f'the first of every stage, attention, MLP) is {found}, known are '
                f'{", ".join(f"{arch} {key}" for key, arch in known.items())}. Get '
                'the complete file that the authors or timm published')
        arch = known[found]
        return arch, Backbone.ARCHS[arch]['embed_dims'][-1], found[-1]


def _layout(tensors):
    """(name of the layout, function from a published name to the file's)."""
    if any(re.match(r'stages\.[23]\.\d+\.local\.main\.', key) for key in tensors):
        return 'timm', _timm_name
    if not any(re.match(r'backbone\.stages\.[23]\.op_list\.\d+\.total\.', key)
               for key in tensors):
        return None, None
    if any(key.startswith('head.opseq.') for key in tensors):
        return 'published (TorchScript head)', lambda name: re.sub(
            r'^head\.', 'head.opseq.', name)
    return 'published', lambda name: name


def _name(target, has_mlp):
    """Published name of one key of our classifier."""
    name = published_name(target)
    if re.match(r'backbone\.stages\.[23]\.op_list\.[1-9]', name):
        for ours, published in _BLOCK.items():
            name = re.sub(rf'\.{ours}\b', f'.{published}', name)
        if not has_mlp:  # attention without a norm is one level higher
            name = name.replace('.total.0.0.main', '.total.0.main')
    return name


def _timm_name(name):
    for pattern, replacement in _TIMM.items():
        name = re.sub(pattern, replacement, name)
    return name
