"""What configs name: hooks, schedules, optimizer wrappers, averages, samplers."""
from .clipping import AGCOptimWrapper, AmpAGCOptimWrapper
from .distributed import CPUDistributedDataParallel
from .ema import WarmUpEMA
from .hash_fitting import HashFittingHook
from .hooks import AccumulationRestartHook, SeedIterationHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .precise_bn import ReestimateBNHook
from .progress import DropPathProgressHook, MESAHook
from .report import MiniReportHook, PictureHook
from .resolution import BatchResizedCrop, BatchResolution, ResolutionBatchSampler
from .schedulers import WarmUpCosineLR
from .seeding import SampleIndex, SeededSampler, SeedSample, seed_everything

__all__ = [
    'AGCOptimWrapper', 'AccumulationRestartHook', 'AmpAGCOptimWrapper',
    'BatchResizedCrop', 'BatchResolution', 'CPUDistributedDataParallel',
    'DropPathProgressHook', 'HashFittingHook', 'LayerDecayOptimWrapperConstructor',
    'MESAHook', 'MiniReportHook', 'PictureHook', 'ReestimateBNHook',
    'ResolutionBatchSampler', 'SampleIndex', 'SeedIterationHook', 'SeedSample',
    'SeededSampler', 'WarmUpCosineLR', 'WarmUpEMA', 'seed_everything'
]
