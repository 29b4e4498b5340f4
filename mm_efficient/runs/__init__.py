"""From a config and choices to a runner."""
from .configs import (
    build_runner,
    dump_predictions,
    load_config,
    prepare_testing,
    prepare_training,
)
from .data_checks import check_batches

__all__ = [
    'build_runner', 'check_batches', 'dump_predictions', 'load_config',
    'prepare_testing', 'prepare_training'
]
