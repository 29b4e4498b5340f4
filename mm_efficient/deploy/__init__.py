"""Fuse and export trained models."""
from .detectors import paste_masks
from .exporting import ExportResult, check_format, export, load_exported
from .fusing import FusionReport, fuse
from .models import deploy_model
from .samples import randomize, sample_images
from .verification import ParityResult, relative_error, tensors_of

__all__ = [
    'ExportResult', 'FusionReport', 'ParityResult', 'check_format', 'deploy_model',
    'export', 'fuse', 'load_exported', 'paste_masks', 'randomize', 'relative_error',
    'sample_images', 'tensors_of'
]
