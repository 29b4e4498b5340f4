import json
import os
import subprocess
import sys

import pytest
import torch
from test_hash_fitting import assert_same
from torch import nn
from torch.distributed.elastic.utils.distributed import get_free_port

from mm_efficient.engine.distributed import CPUDistributedDataParallel

# Two processes see the samples 1 and 2; d(loss)/d(weight) is the sample, so one
# step of SGD with learning rate 1 from weight 0 leads to -(1 + 2) / 2.
SCRIPT = f'''
import json, sys
sys.path.insert(0, {os.path.dirname(__file__)!r})
import torch
from mmengine.config import Config
from mmengine.dist import get_dist_info
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import nn
import test_hash_fitting
from mm_efficient.models.ecoformer.backbone import EcoFormer
from mm_efficient.runs.distributed import join_processes

class Model(BaseModel):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.norm = nn.SyncBatchNorm(1)

    def forward(self, inputs, mode='tensor'):
        inputs = torch.as_tensor(inputs).float()  # (1, )
        zero = self.norm(torch.randn(4, 1)).sum() * 0
        return dict(loss=(self.weight * inputs).sum() + zero)

launcher, folder = sys.argv[1:]
cfg = Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl'))))
join_processes(cfg, launcher)
runner = Runner(
    Model(), work_dir=folder, launcher=launcher, cfg=cfg,
    train_dataloader=dict(
        dataset=[dict(inputs=1.), dict(inputs=2.)], batch_size=1,
        sampler=dict(type='DefaultSampler', shuffle=False)),
    train_cfg=dict(by_epoch=True, max_epochs=1),
    optim_wrapper=dict(optimizer=dict(type='SGD', lr=1.)),
    default_hooks=dict(checkpoint=None))
runner.train()
rank, world_size = get_dist_info()
result = dict(
    world_size=world_size,
    weight=runner.model.module.weight.item(),
    wrapper=type(runner.model).__name__,
    norm=type(runner.model.module.norm).__name__)

fits, fit = [], EcoFormer.fit
EcoFormer.fit = lambda self, *args: (fits.append(1), fit(self, *args))
torch.manual_seed(rank)
runner = test_hash_fitting.make_runner(
    folder + '/hash', test_hash_fitting.Model(), launcher=launcher, cfg=cfg)
runner.train()
result['fits'] = len(fits)
torch.save(dict(runner.model.module.named_buffers()), f'{{folder}}/{{rank}}.pt')
with open(f'{{folder}}/{{rank}}.json', 'w') as file:
    json.dump(result, file)
'''


@pytest.fixture
def cpu_only(monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', '1')


def run_slurm(script, folder):
    common = dict(
        os.environ, SLURM_NTASKS='2', SLURM_NODELIST='localhost',
        MASTER_ADDR='127.0.0.1', MASTER_PORT=str(get_free_port()))
    return [
        subprocess.Popen([sys.executable, script, 'slurm', folder],
                         env=dict(common, SLURM_PROCID=rank, SLURM_LOCALID=rank))
        for rank in ('0', '1')
    ]


@pytest.mark.slow  # tests/tools has two processes that end with the same weights
def test_two_processes_average_gradients_and_fit_once(tmp_path, cpu_only):
    """As Slurm starts them; tests/tools has two processes of PyTorch's launcher."""
    script = tmp_path / 'script.py'
    script.write_text(SCRIPT)
    processes = run_slurm(str(script), str(tmp_path))
    try:
        assert [process.wait(timeout=120) for process in processes].count(0) == \
            len(processes)
    finally:
        for process in processes:
            process.kill()
    for rank in (0, 1):
        assert json.loads((tmp_path / f'{rank}.json').read_text()) == dict(
            world_size=2, weight=-1.5, wrapper='CPUDistributedDataParallel',
            norm='_BatchNormXd', fits=1 - rank)
    buffers, others = (torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1))
    assert buffers['backbone.fitted']
    assert_same(buffers, others)


def test_wrapper_refuses_a_model_elsewhere():
    with pytest.raises(ValueError, match='remove model_wrapper_cfg'):
        CPUDistributedDataParallel(nn.Linear(2, 2, device='meta'))
