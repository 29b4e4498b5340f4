"""What training needs beside models and data, and the set-up the tools share."""
from .averaging import WarmUpEMA
from .checks import SetupError, check_batches
from .clipping import AGCOptimWrapper, AmpAGCOptimWrapper
from .hash_fitting import HashFittingHook
from .hooks import AccumulationRestartHook, SeedIterationHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .norm_statistics import ReestimateBNHook
from .progress import DropPathProgressHook, MESAHook
from .report import MiniReportHook, PictureHook
from .resolution import BatchResizedCrop, BatchResolution, ResolutionBatchSampler
from .schedulers import WarmUpCosineLR
from .setup import build_runner, dump_predictions, prepare_testing, prepare_training

__all__ = [
    'AGCOptimWrapper', 'AccumulationRestartHook', 'AmpAGCOptimWrapper',
    'BatchResizedCrop', 'BatchResolution', 'DropPathProgressHook',
    'HashFittingHook', 'LayerDecayOptimWrapperConstructor', 'MESAHook',
    'MiniReportHook', 'PictureHook', 'ReestimateBNHook', 'ResolutionBatchSampler',
    'SeedIterationHook', 'SetupError', 'WarmUpCosineLR', 'WarmUpEMA',
    'build_runner', 'check_batches', 'dump_predictions', 'prepare_testing',
    'prepare_training'
]
