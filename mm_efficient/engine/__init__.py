"""Everything configs can name: hooks, schedules, samplers, optimizer wrappers, EMA."""
from .accumulation import AccumulationRestartHook
from .backbone_speed import ChannelsLastBackboneHook, CompileBackboneHook
from .bit_depth import CheckBitDepth
from .checkpoints import WholeCheckpointHook
from .clipping import AGCOptimWrapper, AmpAGCOptimWrapper
from .distributed import CPUDistributedDataParallel
from .ema import WarmupEMA
from .hash_fitting import HashFittingHook
from .layer_decay import LayerDecayOptimWrapperConstructor
from .metrics import DumpSegResults
from .mini_report import MiniReportHook
from .new_schedule import NewScheduleHook
from .precise_bn import PreciseBNEvalHook
from .prediction_images import SavePredictionImagesHook
from .progress import DropPathProgressHook, MESAHook
from .resolution import BatchResizedCrop, BatchResolution, ResolutionBatchSampler
from .schedulers import WarmupCosineLR
from .seeding import (
    SampleIndex,
    SeededSampler,
    SeedIterationHook,
    SeedSample,
    seed_everything,
)
from .stopping import StopHook

__all__ = [
    'AGCOptimWrapper', 'AccumulationRestartHook', 'AmpAGCOptimWrapper',
    'BatchResizedCrop', 'BatchResolution', 'CPUDistributedDataParallel',
    'ChannelsLastBackboneHook', 'CheckBitDepth', 'CompileBackboneHook',
    'DropPathProgressHook', 'DumpSegResults', 'HashFittingHook',
    'LayerDecayOptimWrapperConstructor', 'MESAHook', 'MiniReportHook',
    'NewScheduleHook', 'PreciseBNEvalHook', 'ResolutionBatchSampler', 'SampleIndex',
    'SavePredictionImagesHook', 'SeedIterationHook', 'SeedSample', 'SeededSampler',
    'StopHook', 'WarmupCosineLR', 'WarmupEMA', 'WholeCheckpointHook', 'seed_everything'
]
