"""Names that LowFormer and ReduceFormer inherit from EfficientViT's code.

Names: https://github.com/mit-han-lab/efficientvit (Apache-2.0), commit 3ecf6f8.
"""
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor

from ...weights.family import Family

NARROW, WIDE = (1536, 1600), (2304, 2560)  # hidden_dims of the published heads
_CONVOLUTIONS = dict(spatial='spatial_conv', expand='inverted_conv',
                     depthwise='depth_conv', project='point_conv')
_HEAD = {
    'conv.0': 'op_list.0.conv',
    'conv.1': 'op_list.0.norm',
    'linear': 'op_list.2.linear',
    'norm': 'op_list.2.norm',
    'fc': 'op_list.3.linear',
}


def published_name(target: str) -> str:
    """Return the published name of a tensor outside the attention blocks.

    Args:
        target (str): Key of our classifier's ``state_dict``.

    Returns:
        str: The key with stem, stages, convolutions and head renamed.
    """
    part, name = target.split('.', 1)
    if part == 'head':
        module, leaf = name.rsplit('.', 1)
        return f'head.{_HEAD[module]}.{leaf}'
    name = re.sub(r'^stem', 'input_stem.op_list', name)
    name = re.sub(r'^(stages\.\d)\.downsample', r'\1.op_list.0.main', name)
    name = re.sub(r'^(stages\.\d)\.blocks\.(\d+)',
                  lambda m: f'{m[1]}.op_list.{int(m[2]) + 1}', name)
    name = re.sub(r'\b(spatial|expand|depthwise|project)\b',
                  lambda m: _CONVOLUTIONS[m[0]], name)
    name = re.sub(r'((?:input_stem\.op_list\.0|_conv)\.)([01])\b',
                  lambda m: m[1] + ('conv', 'norm')[int(m[2])], name)
    name = re.sub(r'(op_list\.\d+)\.body\b', r'\1.main', name)
    return f'backbone.{name}'


def block_counts(names: Iterable[str]) -> tuple[int, ...]:
    """Count the blocks of every stage, without the downsampling ones.

    Args:
        names (Iterable[str]): Names in the file, published or timm's.

    Returns:
        tuple[int]: Four numbers, -1 for a missing stage.
    """
    pattern = re.compile(r'(?:backbone\.)?stages\.([0-3])\.(?:op_list\.)?(\d+)\.')
    blocks = {match.groups() for match in map(pattern.match, names) if match}
    return tuple(max((int(j) for i, j in blocks if i == stage), default=-1)
                 for stage in '0123')


class EfficientViTFamily(Family):
    """A family whose classifiers have the head of EfficientViT.

    Attributes:
        wide (tuple[str]): Archs with a wider head.
    """

    wide: tuple[str, ...] = ()

    def classifier(self, backbone: Mapping[str, Any], classes: int = 1000) -> dict:
        """See :meth:`Family.classifier`; the head takes the feature map."""
        cfg = super().classifier(backbone, classes)
        del cfg['neck']
        cfg['head'].update(
            type='EfficientViTClsHead',
            hidden_dims=WIDE if backbone['arch'] in self.wide else NARROW)
        return cfg


def head_settings(tensors: Mapping[str, Tensor],
                  rename: Callable[[str], str] = str) -> dict:
    """Read the sizes of the classification head.

    Args:
        tensors (dict[str, Tensor]): Tensors of the file.
        rename (Callable): From published names to those of the file.
            Defaults to the identity.

    Returns:
        dict: ``hidden_dims`` and ``num_classes`` of ``EfficientViTClsHead``, the
        published ones where tensors are missing.
    """
    def width(name: str, default: int) -> int:
        tensor = tensors.get(rename(f'head.op_list.{name}.weight'))
        return default if tensor is None or tensor.ndim == 0 else tensor.shape[0]

    return dict(hidden_dims=(width('0.conv', NARROW[0]), width('2.linear', NARROW[1])),
                num_classes=width('3.linear', 1000))
