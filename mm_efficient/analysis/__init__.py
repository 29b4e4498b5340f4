from .complexity import Complexity, Cost, count
from .zoo import Subject, complexity, find_model, from_config

__all__ = [
    'Complexity', 'Cost', 'Subject', 'complexity', 'count', 'find_model', 'from_config'
]
