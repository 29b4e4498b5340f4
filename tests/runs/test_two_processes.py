"""Two processes train as one: same resolutions, same weights."""
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = '''
import json, sys
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mm_efficient.runs import build_runner, mini, prepare_training

class Recorder(Hook):
    """Size of the images of every batch."""

    def __init__(self):
        self.sizes = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.sizes.append(list(data_batch['inputs'].shape[2:]))

generate = mini.generate_dataset
mini.generate_dataset = lambda name: generate(name, num_train=16, num_val=1)
mini.RECIPES['mmpretrain'].update(size=64, batch=2)
config, folder = sys.argv[1:3]
runner = build_runner(prepare_training(
    config, work_dir=folder, mini=True, launcher='pytorch', cfg_options={
        'val_dataloader': None, 'val_cfg': None, 'val_evaluator': None,
        'train_cfg.max_epochs': 2, 'optim_wrapper.accumulative_counts': 1,
        'log_level': 'ERROR'}))
recorder = Recorder()
runner.register_hook(recorder)
runner.train()
average = next(hook for hook in runner.hooks if hasattr(hook, 'ema_model'))
statistics = next(hook for hook in runner.hooks if hasattr(hook, 'statistics'))
weights = [parameter for model in (runner.model.module, average.ema_model)
           for parameter in model.parameters()]
weights += statistics.statistics.values()
result = dict(
    sizes=recorder.sizes,
    weights=[tensor.double().norm().item() for tensor in weights],
    mesa=runner.model.module.mesa is not None)
with open(f'{folder}/{get_rank()}.json', 'w') as file:
    json.dump(result, file)
'''


def test_resolutions_and_weights_are_the_same(tmp_path):
    if torch.cuda.is_available():
        pytest.skip('two processes would need two GPUs')
    (tmp_path / 'script.py').write_text(SCRIPT)
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc_per_node=2', 'script.py',
         str(ROOT / 'configs/cls/lowformer_e2_300e.py'), str(tmp_path)],
        cwd=tmp_path, check=True, timeout=300,
        env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT)))
    first, second = (json.loads((tmp_path / f'{rank}.json').read_text())
                     for rank in (0, 1))
    assert len(first['sizes']) == 8
    assert len({tuple(size) for size in first['sizes']}) > 1
    assert first == second and first['mesa']
