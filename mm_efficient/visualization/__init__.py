"""What models see and where they look, data sets as trained on, training curves."""
from .attention import (
    AttentionMap,
    attention_layers,
    attention_maps,
    draw_attention,
    short_name,
)
from .curves import Run, choose_keys, draw_curves, read_run
from .features import Level, draw_features, feature_pyramid
from .figures import FIGURE_SUFFIXES, save_figure
from .photos import (
    SHORT_SIDES,
    check_output,
    find_images,
    load_model,
    model_input,
    read_photo,
)

__all__ = [
    'AttentionMap', 'FIGURE_SUFFIXES', 'Level', 'Run', 'SHORT_SIDES',
    'attention_layers', 'attention_maps', 'check_output', 'choose_keys',
    'draw_attention', 'draw_curves', 'draw_features', 'feature_pyramid',
    'find_images', 'load_model', 'model_input', 'read_photo', 'read_run',
    'save_figure', 'short_name'
]
