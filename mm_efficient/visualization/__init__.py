"""What models see and where they look, data sets as trained on, training curves."""
from .attention import (
    attention_layers,
    attention_maps,
    draw_attention,
    short_name,
)
from .curves import Run, choose_keys, draw_curves, read_run
from .datasets import (
    build_dataset,
    build_visualizer,
    choose_indices,
    deliver,
    draw_dataset,
    draw_truth,
)
from .features import Level, draw_features, feature_pyramid
from .figures import FIGURE_SUFFIXES, save_figure

__all__ = [
    'FIGURE_SUFFIXES', 'Level', 'Run', 'attention_layers',
    'attention_maps', 'build_dataset', 'build_visualizer', 'choose_indices',
    'choose_keys', 'deliver', 'draw_attention', 'draw_curves', 'draw_dataset',
    'draw_features', 'draw_truth', 'feature_pyramid', 'read_run', 'save_figure',
    'short_name'
]
