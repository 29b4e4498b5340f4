"""From a trained model to one that is deployed."""
from .detectors import paste_masks
from .exporting import Export, check_format, export, load
from .fusing import FusionReport, fuse, relative_error, tensors_of
from .models import deploy_model
from .samples import photographs, randomize

__all__ = [
    'Export', 'FusionReport', 'check_format', 'deploy_model', 'export', 'fuse', 'load',
    'paste_masks', 'photographs', 'randomize', 'relative_error', 'tensors_of'
]
