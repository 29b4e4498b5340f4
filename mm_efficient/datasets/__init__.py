"""Generated miniature data sets, and samples that can be drawn again."""
from .mini import CLASSES, MINI_ROOT, PALETTE, prepare
from .seeding import SampleIndex, SeededSampler, SeedSample, seed_everything

__all__ = [
    'CLASSES', 'MINI_ROOT', 'PALETTE', 'SampleIndex', 'SeedSample',
    'SeededSampler', 'prepare', 'seed_everything'
]
