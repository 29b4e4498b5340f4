"""Attention maps, and figures of maps drawn over an image."""
from .attention import attention_layers, attention_maps, draw_attention, layer_title
from .figures import (
    FIGURE_SUFFIXES,
    MapRow,
    add_out,
    check_figure,
    draw_maps,
    grid_figure,
    save_figure,
)
from .inputs import Inputs, image_parser, load_inputs

__all__ = [
    'FIGURE_SUFFIXES', 'Inputs', 'MapRow', 'add_out', 'attention_layers',
    'attention_maps', 'check_figure', 'draw_attention', 'draw_maps', 'grid_figure',
    'image_parser', 'layer_title', 'load_inputs', 'save_figure'
]
