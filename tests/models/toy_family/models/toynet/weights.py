"""ToyNet: facts, and published names."""
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
from .backbone import ToyNet


@register_family
class ToyNetFamily(Family):
    """ToyNet, whose published files have other prefixes."""

    name = 'ToyNet'
    title = 'A Toy'
    paper = 'https://example.org/toynet'
    venue = 'this test'
    code = 'https://example.org/toynet.git'
    licence = 'Apache-2.0'
    variants = {f'toynet_{arch}': dict(type='ToyNet', arch=arch)
                for arch in ToyNet.ARCHS}
    reported = Reported({'toynet_tiny': dict(cls=top1(12.3))}, dict(cls='a table'))

    def recognise(self, tensors: Tensors) -> Layout | None:
        """See :meth:`Family.recognise`."""
        if 'toy.stem.0.weight' not in tensors:
            return None
        depths = tuple(
            len([key for key in tensors if key.startswith(f'toy.stages.{i}.blocks.')
                 and key.endswith('.conv.weight')]) for i in range(4))
        arch = self.find_arch(depths, {
            tuple(settings['depths']): arch for arch, settings in ToyNet.ARCHS.items()
        }, 'blocks per stage')
        return Layout(
            arch=arch,
            model=dict(
                type='ImageClassifier',
                backbone=dict(type='ToyNet', arch=arch),
                neck=dict(type='GlobalAveragePooling'),
                head=dict(type='LinearClsHead',
                          in_channels=ToyNet.ARCHS[arch]['embed_dims'][-1],
                          num_classes=num_classes(tensors, 'fc.weight'))),
            sources=lambda target: Source((
                target.replace('backbone.', 'toy.').replace('head.fc.', 'fc.'), )),
            variants=(f'toynet_{arch}', ))
