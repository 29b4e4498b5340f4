"""Synthetic stand-ins for the checkpoints that the authors published."""
import json
import runpy
from pathlib import Path

import pytest

REFERENCE = Path(__file__).parents[1] / 'reference'


@pytest.fixture(scope='session')
def published():
    """Function from a variant to a fresh dict of its published tensors."""
    synth_state_dict = runpy.run_path(
        str(REFERENCE / 'synth.py'))['synth_state_dict']

    def make(variant='soft_tiny', seed=0):
        (path,) = REFERENCE.glob(f'*/{variant}.json')
        manifest = json.loads(path.read_text())
        return synth_state_dict(manifest['state_dict'], seed)

    return make
