"""Attention maps, and figures of maps drawn over an image."""
from .attention import attention_layers, attention_maps, draw_attention, layer_title
from .figures import FIGURE_SUFFIXES, draw_row, grid_figure, save_figure

__all__ = [
    'FIGURE_SUFFIXES', 'attention_layers', 'attention_maps', 'draw_attention',
    'draw_row', 'grid_figure', 'layer_title', 'save_figure'
]
