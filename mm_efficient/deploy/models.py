"""Models as they are deployed: one module from images to tensors of known shapes.

A whole model takes photographs as they are (RGB, 0 to 255): normalisation and padding
are part of it, and so is what comes behind the network: decoding, suppression, argmax.
It computes what the model's own prediction in PyTorch does, for images of one size. How
many objects there are depends on the image: there are always as many rows as the
config allows at most, those behind the objects with a score of 0 and the label -1.

The names of inputs and outputs are MMDeploy's (https://github.com/open-mmlab/mmdeploy).
"""
from importlib.util import find_spec

import torch
from mmpretrain.models import ClsHead, ImageClassifier, MultiLabelClsHead
from torch import Tensor, nn
from torch.nn.modules.utils import _pair

from ..errors import InputError
from .base import DeployModel, refusal
from .detectors import deploy_detector


class DeployBackbone(nn.Module):
    """A backbone: normalised images (B, C, H, W) to its levels.

    Args:
        backbone (nn.Module): From an image to a tuple of maps, with ``out_indices``.

    Raises:
        InputError: Without ``out_indices``.
    """

    def __init__(self, backbone: nn.Module):
        super().__init__()
        if not hasattr(backbone, 'out_indices'):
            raise InputError(f'{type(backbone).__name__} has no out_indices, expected '
                             'a backbone of OpenMMLab.')
        self.model = backbone
        self.output_names = tuple(f'feat{i}' for i in backbone.out_indices)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> one map per level."""
        return self.network(image)

    def network(self, image: Tensor) -> tuple[Tensor, ...]:
        """The levels."""
        return tuple(self.model(image))


class DeployClassifier(DeployModel):
    """A classifier: ``output`` are the probabilities of the classes."""

    output_names = ('output', )

    def __init__(self, model: nn.Module):
        super().__init__(model)
        self.multi_label = isinstance(model.head, MultiLabelClsHead)
        if not self.multi_label and not isinstance(model.head, ClsHead):
            raise refusal(model, f'its head is a {type(model.head).__name__}; expected '
                          'a ClsHead or a MultiLabelClsHead')

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """(B, 3, H, W) -> (B, num_classes)."""
        logits = self.network(image)
        return (logits.sigmoid() if self.multi_label else logits.softmax(-1), )

    def network(self, image: Tensor) -> Tensor:
        """Logits, (B, num_classes)."""
        return self.model(self.preprocess(image), mode='tensor')


class DeploySegmentor(DeployModel):
    """A segmentor: ``output`` is the class of every pixel."""

    output_names = ('output', )

    def __init__(self, model: nn.Module):
        super().__init__(model)
        if model.test_cfg.get('mode', 'whole') != 'whole':
            raise InputError(
                "only segmentors that see the whole image can be exported, this one "
                f'has model.test_cfg.mode={model.test_cfg.mode!r}; set it to whole.')
        make_exportable(model)

    def _padding(self, preprocessor: nn.Module) -> tuple[int, float]:
        padding = preprocessor.test_cfg or {}
        if padding.get('size'):
            raise refusal(
                self.model, 'its data_preprocessor.test_cfg.size pads to one size; '
                'expected size_divisor, or none of both')
        return padding.get('size_divisor') or 1, preprocessor.pad_val

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """(B, 3, H, W) -> int64 (B, 1, H, W)."""
        logits = self.network(image)[..., :image.shape[2], :image.shape[3]]
        if logits.shape[1] == 1:  # of one class there are only yes and no
            return ((logits.sigmoid() > self.model.decode_head.threshold).long(), )
        return (logits.argmax(1, keepdim=True), )

    def network(self, image: Tensor) -> Tensor:
        """Logits at the size of the padded image, (B, num_classes, H', W')."""
        x = self.preprocess(image)
        size = x.shape[2:]
        return self.model.encode_decode(
            x, [dict(img_shape=size, pad_shape=size, ori_shape=size)])


def adaptive_average(x: Tensor, height: int, width: int) -> Tensor:
    """``F.adaptive_avg_pool2d`` as two matrix products.

    Other than :func:`area_pool`, an entry that two cells share counts fully for both,
    which is PyTorch's definition.

    Args:
        x (Tensor): (..., H, W), floating point.
        height (int): Output rows.
        width (int): Output columns.

    Returns:
        Tensor: (..., height, width).
    """
    rows = _shared_cell_weights(x.shape[-2], height, x)  # (height, H)
    columns = _shared_cell_weights(x.shape[-1], width, x)  # (width, W)
    return rows @ (x @ columns.t())


def _shared_cell_weights(size: int, cells: int, like: Tensor) -> Tensor:
    """Weight of every entry in every cell's average, (cells, size)."""
    cell = torch.arange(cells, device=like.device)[:, None]
    entry = torch.arange(size, device=like.device)
    start = cell * size // cells
    end = ((cell + 1) * size + cells - 1) // cells
    inside = ((entry >= start) & (entry < end)).to(like.dtype)
    return inside / (end - start).to(like.dtype)


class AdaptiveAverage(nn.Module):
    """``nn.AdaptiveAvgPool2d`` that exports with dynamic sizes.

    Args:
        size (tuple[int, int]): Rows and columns of the output.
    """

    def __init__(self, size: tuple[int, int]):
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, *size)."""
        return adaptive_average(x, *self.size)


def make_exportable(model: nn.Module) -> None:
    """Replace layers that are exported with known sizes only, by their equals.

    Args:
        model (nn.Module): Segmentor, changed in place.
    """
    from mmseg.models.utils import Upsample
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.AdaptiveAvgPool2d):
                size = _pair(child.output_size)
                if size != (1, 1):
                    setattr(module, name, AdaptiveAverage(size))
            elif isinstance(child, Upsample) and not child.size:
                setattr(module, name, nn.Upsample(
                    scale_factor=child.scale_factor, mode=child.mode,
                    align_corners=child.align_corners))


def deploy_model(model: nn.Module) -> nn.Module:
    """What is deployed of a whole model.

    Args:
        model (nn.Module): Classifier of MMPretrain, detector of MMDetection or
            segmentor of MMSegmentation, in eval mode. Layers that export with known
            sizes only are replaced in it.

    Returns:
        nn.Module: Takes RGB photographs of 0 to 255, (B, 3, H, W), and returns a tuple
        of tensors, named by ``output_names``.

    Raises:
        InputError: If models of its kind cannot be deployed.
    """
    if isinstance(model, ImageClassifier):
        return DeployClassifier(model)
    if find_spec('mmseg'):
        from mmseg.models import CascadeEncoderDecoder, EncoderDecoder
        if type(model) in (EncoderDecoder, CascadeEncoderDecoder):
            return DeploySegmentor(model)
    if find_spec('mmdet') and (detector := deploy_detector(model)):
        return detector
    raise refusal(model, 'expected an ImageClassifier, an EncoderDecoder, a RetinaNet, '
                  'a Faster R-CNN or a Mask R-CNN')
