"""Hooks and the set-up that the tools share."""
from .checks import SetupError
from .hash_fitting import HashFittingHook
from .hooks import SeedIterationHook
from .report import MiniReportHook, PictureHook
from .setup import build_runner, dump_predictions, prepare_testing, prepare_training

__all__ = [
    'HashFittingHook', 'MiniReportHook', 'PictureHook', 'SeedIterationHook',
    'SetupError', 'build_runner', 'dump_predictions', 'prepare_testing',
    'prepare_training'
]
