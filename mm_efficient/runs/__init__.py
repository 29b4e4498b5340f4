"""Training and testing from a config and a few arguments.

    from mm_efficient import runs
    runner = runs.train('soft_tiny_300e.py', mini=True)
    metrics = runs.test('soft_tiny_300e.py', 'epoch_20.pth', mini=True)

``prepare_training`` and ``prepare_testing`` do everything but run: they return the
config that ``build_runner`` turns into MMEngine's runner, for hooks of your own.
"""
from .configs import load_config
from .runner import build_runner
from .testing import dump_predictions, prepare_testing, test
from .training import prepare_training, train

__all__ = [
    'build_runner', 'dump_predictions', 'load_config', 'prepare_testing',
    'prepare_training', 'test', 'train'
]
