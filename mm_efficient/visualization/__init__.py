"""What models see and where they look, data sets as trained on, training curves."""
from .attention import (
    AttentionMap,
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
from .inference import Predictor, build_predictor, dataset_meta
from .photos import (
    SHORT_SIDES,
    check_output,
    find_images,
    load_model,
    model_input,
    read_photo,
)

__all__ = [
    'AttentionMap', 'FIGURE_SUFFIXES', 'Level', 'Predictor', 'Run', 'SHORT_SIDES',
    'attention_layers', 'attention_maps', 'build_dataset', 'build_predictor',
    'build_visualizer', 'check_output', 'choose_indices', 'choose_keys',
    'dataset_meta', 'deliver', 'draw_attention', 'draw_curves', 'draw_dataset',
    'draw_features', 'draw_truth', 'feature_pyramid', 'find_images', 'load_model',
    'model_input', 'read_photo', 'read_run', 'save_figure', 'short_name'
]
