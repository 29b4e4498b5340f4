"""What all models that are deployed as a whole have in common."""
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError


class DeployModel(nn.Module):
    """What is deployed of a model.

    Args:
        model (nn.Module): The model, in eval mode; whole ones of OpenMMLab.
    """

    output_names: tuple[str, ...]

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        preprocessor = model.data_preprocessor
        # Pipelines of OpenMMLab deliver BGR, of which this makes RGB
        self.rgb = any(getattr(preprocessor, name, False) for name in (
            'to_rgb', '_channel_conversion', 'channel_conversion'))
        self.normalize = hasattr(preprocessor, 'mean')
        self.pad_divisor, self.pad_value = self._padding(preprocessor)

    def _padding(self, preprocessor: nn.Module) -> tuple[int, float]:
        """Number that both sides are padded to a multiple of, and with what."""
        return (getattr(preprocessor, 'pad_size_divisor', 1) or 1,
                getattr(preprocessor, 'pad_value', 0))

    def preprocess(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) of 0 to 255 -> normalised and padded, (B, 3, H', W')."""
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
        """What the network gives for images, before anything is decided on it."""
        raise NotImplementedError


def refusal(model: nn.Module, reason: str) -> InputError:
    """The error of a model that cannot be deployed.

    Args:
        model (nn.Module): The model.
        reason (str): Why, a part of a sentence.

    Returns:
        InputError: To be raised.
    """
    return InputError(f'{type(model).__name__} cannot be exported as a whole: '
                      f'{reason}. Its backbone can, with --backbone.')
