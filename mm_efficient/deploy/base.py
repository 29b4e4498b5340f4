"""Base class of whole models that are exported."""
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError


class DeployModel(nn.Module):
    """A model of OpenMMLab as one module from images to tensors of fixed shapes.

    Args:
        model (nn.Module): Whole model, in eval mode.
    """

    model: Any
    output_names: tuple[str, ...]

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        preprocessor = self.model.data_preprocessor
        # OpenMMLab's pipelines yield BGR; these flags convert it to RGB
        self.rgb = any(getattr(preprocessor, name, False) for name in (
            'to_rgb', '_channel_conversion', 'channel_conversion'))
        self.normalize = hasattr(preprocessor, 'mean')
        self.pad_divisor, self.pad_value = self._padding(preprocessor)

    def _padding(self, preprocessor: Any) -> tuple[int, float]:
        """Divisor that both sides are padded to, and the padding value."""
        return (getattr(preprocessor, 'pad_size_divisor', 1) or 1,
                getattr(preprocessor, 'pad_value', 0))

    def preprocess(self, image: Tensor) -> Tensor:
        """Normalise and pad RGB, 0 to 255: (B, 3, H, W) -> (B, 3, H', W')."""
        x = image if self.rgb else image.flip(1)
        if self.normalize:
            preprocessor = self.model.data_preprocessor
            x = (x - preprocessor.mean) / preprocessor.std
        if self.pad_divisor > 1:
            height, width = x.shape[2:]
            x = F.pad(x, (0, -width % self.pad_divisor, 0, -height % self.pad_divisor),
                      value=self.pad_value)
        return x

    def network(self, image: Tensor) -> Any:
        """Raw outputs of the network, without postprocessing."""
        raise NotImplementedError


def unsupported(model: nn.Module, reason: str) -> InputError:
    """Error for a model that cannot be exported.

    Args:
        model (nn.Module): The model.
        reason (str): The reason, as a clause.

    Returns:
        InputError: The error, to be raised.
    """
    return InputError(f'{type(model).__name__} cannot be exported as a whole: '
                      f'{reason}. Export its backbone with --backbone.')
