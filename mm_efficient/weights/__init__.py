"""Published and own weights: read, fetched, checked, converted and loaded."""
from .checking import check_checkpoint
from .conversion import Conversion, convert_checkpoint
from .family import FAMILIES, CheckpointError, Family, register_family
from .loading import load_pretrained, load_weights, match_pretrained, match_state_dict
from .reading import convert_file, write_checkpoint

__all__ = [
    'FAMILIES', 'CheckpointError', 'Conversion', 'Family', 'check_checkpoint',
    'convert_checkpoint', 'convert_file', 'load_pretrained', 'load_weights',
    'match_pretrained', 'match_state_dict', 'register_family', 'write_checkpoint'
]
