"""Check that images have eight bits per channel."""
import os.path as osp
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.registry import TRANSFORMS
from PIL import Image

from ..errors import InputError


@TRANSFORMS.register_module()
class CheckBitDepth(BaseTransform):
    """Reject image files with more than eight bits per pixel and channel.

    Pillow clips grey images of 16 or 32 bits, which makes most of them white; OpenCV
    scales them. Neither is what a network for photographs expects. Comes after
    ``LoadImageFromFile``, and reads the header of ``img_path`` if it is a file on this
    machine.

    Raises:
        InputError: With the name of the file.
    """

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """Check ``img_path``; ``results`` are returned unchanged."""
        path = results.get('img_path')
        if isinstance(path, str) and osp.isfile(path):
            with Image.open(path) as image:
                mode = image.mode
            if mode.startswith(('I', 'F')):
                raise InputError(
                    f'{path} has more than 8 bits per pixel (mode {mode!r} of Pillow): '
                    'convert the images to 8 bits, all with the same scale.')
        return results
