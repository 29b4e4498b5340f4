"""Counting and timing models."""
from .cli import image_shape, model_parser, print_counts
from .complexity import Complexity, Cost, count
from .energy import Operations, energy
from .models import ModelSpec, complexity, find_model, from_config

__all__ = [
    'Complexity', 'Cost', 'ModelSpec', 'Operations', 'complexity', 'count', 'energy',
    'find_model', 'from_config', 'image_shape', 'model_parser', 'print_counts'
]
