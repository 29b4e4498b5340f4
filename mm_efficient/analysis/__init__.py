from .complexity import Complexity, Cost, count
from .energy import Operations, energy
from .models import Subject, complexity, find_model, from_config, image_size

__all__ = [
    'Complexity', 'Cost', 'Operations', 'Subject', 'complexity', 'count', 'energy',
    'find_model', 'from_config', 'image_size'
]
