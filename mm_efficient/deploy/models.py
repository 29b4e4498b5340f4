"""Models as they are exported: one module from images to tensors of fixed shapes.

A whole model takes RGB images, 0 to 255. Normalisation, padding and postprocessing
(decoding, NMS, argmax) are part of it, and it predicts what the model does in PyTorch.
All images of a batch have the same size.

Inputs and outputs have MMDeploy's names (https://github.com/open-mmlab/mmdeploy).
"""
from importlib.util import find_spec
from typing import Any

from mmpretrain.models import ClsHead, ImageClassifier, MultiLabelClsHead
from torch import Tensor, nn

from ..errors import InputError
from .base import DeployModel, unsupported
from .detectors import deploy_detector
from .layers import make_exportable


class DeployBackbone(nn.Module):
    """A backbone, from normalised images to feature maps ``feat0``, ``feat1``, ...

    Args:
        backbone (nn.Module): Returns a tuple of feature maps and has ``out_indices``.

    Raises:
        InputError: If it has no ``out_indices``.
    """

    output_names: tuple[str, ...]

    def __init__(self, backbone: Any):
        super().__init__()
        if not hasattr(backbone, 'out_indices'):
            raise InputError(f'{type(backbone).__name__} has no out_indices, expected '
                             'a backbone of OpenMMLab.')
        self.model = backbone
        self.output_names = tuple(f'feat{i}' for i in backbone.out_indices)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> one feature map per output."""
        return self.network(image)

    def network(self, image: Tensor) -> tuple[Tensor, ...]:
        """The feature maps."""
        return tuple(self.model(image))


class DeployClassifier(DeployModel):
    """A classifier, which outputs class probabilities."""

    output_names = ('output', )

    def __init__(self, model: nn.Module):
        super().__init__(model)
        head = self.model.head
        self.multi_label = isinstance(head, MultiLabelClsHead)
        if not isinstance(head, (ClsHead, MultiLabelClsHead)):
            raise unsupported(model, f'its head is a {type(head).__name__}; expected a '
                              'ClsHead or a MultiLabelClsHead')

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """(B, 3, H, W) -> (B, num_classes)."""
        logits = self.network(image)
        return (logits.sigmoid() if self.multi_label else logits.softmax(-1), )

    def network(self, image: Tensor) -> Tensor:
        """Logits, (B, num_classes)."""
        return self.model(self.preprocess(image), mode='tensor')


class DeploySegmentor(DeployModel):
    """A segmentor, which outputs the class of every pixel.

    Raises:
        InputError: If the model uses sliding windows or pads to a fixed size.
    """

    output_names = ('output', )

    def __init__(self, model: nn.Module):
        super().__init__(model)
        mode = self.model.test_cfg.get('mode', 'whole')
        if mode != 'whole':
            raise InputError('expected a segmentor with model.test_cfg.mode=whole, '
                             f'got mode={mode!r}; set it to whole.')
        make_exportable(model)

    def _padding(self, preprocessor: Any) -> tuple[int, float]:
        padding = preprocessor.test_cfg or {}
        if padding.get('size'):
            raise unsupported(
                self.model, 'its data_preprocessor.test_cfg.size pads to a fixed size; '
                'expected size_divisor, or neither')
        return padding.get('size_divisor') or 1, preprocessor.pad_val

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """(B, 3, H, W) -> int64 (B, 1, H, W)."""
        logits = self.network(image)[..., :image.shape[2], :image.shape[3]]
        if logits.shape[1] == 1:  # binary segmentation
            return ((logits.sigmoid() > self.model.decode_head.threshold).long(), )
        return (logits.argmax(1, keepdim=True), )

    def network(self, image: Tensor) -> Tensor:
        """Logits at the size of the padded image, (B, num_classes, H', W')."""
        x = self.preprocess(image)
        shape = x.shape[2:]
        return self.model.encode_decode(
            x, [dict(img_shape=shape, pad_shape=shape, ori_shape=shape)])


def deploy_model(model: nn.Module) -> DeployModel:
    """Wrap a whole model for export.

    Args:
        model (nn.Module): Classifier of MMPretrain, detector of MMDetection or
            segmentor of MMSegmentation, in eval mode. Layers that export with fixed
            input shapes only are replaced in place.

    Returns:
        DeployModel: Takes RGB images, 0 to 255, (B, 3, H, W), and returns a tuple of
        tensors named by ``output_names``.

    Raises:
        InputError: If models of its kind cannot be exported.
    """
    if isinstance(model, ImageClassifier):
        return DeployClassifier(model)
    if find_spec('mmseg'):
        from mmseg.models import CascadeEncoderDecoder, EncoderDecoder
        if type(model) in (EncoderDecoder, CascadeEncoderDecoder):
            return DeploySegmentor(model)
    if find_spec('mmdet') and (detector := deploy_detector(model)):
        return detector
    raise unsupported(model, 'expected an ImageClassifier, an EncoderDecoder, a '
                      'RetinaNet, a Faster R-CNN or a Mask R-CNN')
