"""Any number of processes on any number of machines train and measure alike."""
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from running import equal, evaluate, finish, record, start
from test_signals import workers
from torch.distributed.elastic.utils.distributed import get_free_port

pytestmark = pytest.mark.trials
ROOT = Path(__file__).parents[2]
BATCH = 8  # of all processes; the last one of an epoch of 20 images has 4
NUM_TRAIN = 20
# What differs with the number of processes by design, or on the CPU only: batch norms
# see the images of a process, stochastic depth and Mixup draw for each process
BACKBONE = {'model.backbone.drop_path_rate': 0., 'model.backbone.norm_eval': True}
CLS = {**BACKBONE, 'model.train_cfg': None,
       'train_dataloader.drop_last': False, 'train_cfg.max_epochs': 2}
SEG = {**BACKBONE, 'train_cfg.max_iters': 6, 'model.decode_head.dropout_ratio': 0.,
       'model.decode_head.norm_cfg': dict(_delete_=True, type='GN', num_groups=8)}
TRAININGS = {
    'soft_tiny_300e.py': CLS, 'soft_tiny_norm_300e.py': CLS,
    'ecoformer_pvt_b0_30e.py': CLS, 'soft_tiny_fpn_80k.py': SEG,
    'swiftformer_xs_fpn_40k.py': SEG, 'lowformer_b0_fpn_80k.py': SEG,
    'reduceformer_b1_fpn_80k.py': SEG}
DET = {**BACKBONE, 'train_dataloader.batch_sampler': None, 'train_cfg.max_epochs': 2}


def together(processes, folder, function, *args, **options):
    """Call a function in so many processes, joined by PyTorch's launcher if several.

    Returns:
        list[tuple[int, str]]: Exit code and output of each.
    """
    common = dict(WORLD_SIZE=str(processes), MASTER_ADDR='127.0.0.1',
                  MASTER_PORT=str(get_free_port()))
    launcher = 'none' if processes == 1 else 'pytorch'
    logs = [f'{folder}.{rank}.log' for rank in range(processes)]
    children = [start(
        lambda: function(*args, folder, launcher=launcher, **options), log,
        RANK=str(rank), LOCAL_RANK=str(rank), **common)
        for rank, log in enumerate(logs)]
    return [finish(child, log) for child, log in zip(children, logs)]


def loss_curves(name, **options):
    """Losses of the training with one, two and four processes."""
    curves = []
    for processes in (1, 2, 4):
        folder = f'{processes}_processes'
        outcomes = together(
            processes, folder, record, name, num_train=NUM_TRAIN,
            **{'train_dataloader.batch_size': BATCH // processes, **options})
        assert all(code == 0 for code, _ in outcomes), outcomes
        curves.append(np.array(json.loads(Path(f'{folder}.json').read_text())))
    return curves


@pytest.mark.parametrize('name', TRAININGS)
def test_loss_curve(tmp_path, monkeypatch, count, name):
    monkeypatch.chdir(tmp_path)
    one, *others = loss_curves(name, **TRAININGS[name])
    assert len(one) == 6 and len(set(one.round(6))) == 6
    errors = [float((abs(curve - one) / one).max()) for curve in others]
    same = sum(error < 1e-3 for error in errors)
    count(f'{name}: loss curve of two and of four processes is that of one, up to '
          f'{max(errors):.0e}', tried=2, equal=same)
    assert same == 2


def test_loss_curve_of_a_detector(tmp_path, monkeypatch, count):
    """MMDetection divides by the positive anchors of a process, not of all."""
    monkeypatch.chdir(tmp_path)
    one, *others = loss_curves('soft_tiny_retinanet_1x.py', **DET)
    errors = [float((abs(curve - one) / one).max()) for curve in others]
    count('soft_tiny_retinanet_1x.py: the same; MMDetection divides by the positive '
          f'anchors of each process, difference up to {max(errors):.0e}',
          tried=2, equal=sum(error < 1e-3 for error in errors))
    assert max(errors) < 0.3


def test_incomplete_round(tmp_path, monkeypatch, count):
    """18 images for four processes: two are repeated, all have as many batches."""
    monkeypatch.chdir(tmp_path)
    outcomes = together(4, 'four', record, 'soft_tiny_300e.py', num_train=18,
                        **{**CLS, 'train_dataloader.batch_size': 2})
    losses = json.loads(Path('four.json').read_text())
    done = all(code == 0 for code, _ in outcomes) and len(losses) == 6
    count('soft_tiny_300e.py: 18 images, four processes, batches of 2, 2 and 1',
          tried=1, clear=int(done))
    assert done and np.isfinite(losses).all()


@pytest.mark.parametrize('name', [
    'lowformer_b0_300e.py', 'lowformer_b0_retinanet_1x.py', 'lowformer_b0_fpn_80k.py'])
def test_metrics(tmp_path, monkeypatch, count, name):
    """Of 7 images, by one to four processes, of which some get one less."""
    monkeypatch.chdir(tmp_path)
    length = {'train_cfg.max_iters': 40} if 'fpn' in name else \
        {'train_cfg.max_epochs': 30}
    options = {**length, 'train_dataloader.batch_size': 4,
               'default_hooks.checkpoint.save_last': True}
    code, output = together(1, 'trained', record, name, num_train=8, num_val=7,
                            **options)[0]
    assert code == 0, output
    checkpoint, = Path('trained').glob('*.pth')
    # Boxes of a model that has hardly learned have low scores
    options = {'model.test_cfg.score_thr': 0.} if 'retinanet' in name else {}
    metrics = []
    for processes in (1, 2, 3, 4):
        folder = f'{processes}_processes'
        outcomes = together(processes, folder, evaluate, name, str(checkpoint),
                            **options)
        assert all(code == 0 for code, _ in outcomes), outcomes
        metrics.append(json.loads(Path(f'{folder}.json').read_text()))
    one, *others = metrics
    same = sum(each == pytest.approx(one, rel=1e-6) for each in others)
    largest = max(one, key=one.get)
    count(f'{name}: metrics of 7 images by two, three and four processes are those of '
          f'one, such as {largest} {one[largest]:.3f}',
          tried=3, equal=same)
    assert same == 3 and one[largest] > 0


# -------------------------------------------------------------- two machines in one

OPTIONS = ['--mini', '--auto-resume', '--cfg-options', 'train_dataloader.batch_size=2',
           'default_hooks.logger.interval=1', 'default_hooks.checkpoint.interval=2',
           'val_dataloader=None', 'val_cfg=None', 'val_evaluator=None']
CONFIG = 'soft_tiny_fpn_80k.py'
SRUN = '''#!/usr/bin/env bash
while [ "${1#-}" != "$1" ]; do
    case "$1" in
        -p) shift ;;
        --ntasks=*) tasks=${1#*=} ;;
        --ntasks-per-node=*) per_node=${1#*=} ;;
    esac
    shift
done
export SLURM_NTASKS=$tasks SLURM_NODELIST='node[1-2]' SLURM_JOB_ID=29617
for ((rank = 0; rank < tasks; rank++)); do
    SLURM_PROCID=$rank SLURM_LOCALID=$((rank % per_node)) \\
        SLURM_NODEID=$((rank / per_node)) "$@" &
    started+=($!)
done
for process in "${started[@]}"; do wait "$process" || status=$?; done
exit ${status:-0}
'''


def launch(command, log, folder, iterations=4, **env):
    env = {key: str(value) for key, value in env.items()}
    env = dict(os.environ, OMP_NUM_THREADS='1', PYTHON=sys.executable,
               PYTHONPATH=str(ROOT), **env)
    return subprocess.Popen(
        [*command, '--work-dir', folder, *OPTIONS, f'train_cfg.max_iters={iterations}'],
        env=env, stdout=open(log, 'w'), stderr=subprocess.STDOUT)


def by_torchrun(processes):
    return ['bash', str(ROOT / 'tools/dist_train.sh'), CONFIG, str(processes)]


@pytest.fixture
def single(tmp_path, monkeypatch):
    """Checkpoint of four processes on one machine."""
    monkeypatch.chdir(tmp_path)
    job = launch(by_torchrun(4), 'single.log', 'single', PORT=get_free_port())
    assert job.wait(600) == 0, Path('single.log').read_text()
    return Path('single/iter_4.pth').rename('single.pth')


def test_two_machines(single, count):
    """They share folders; data are generated by both at once."""
    os.rename('data', 'other_data')
    port = get_free_port()
    jobs = [launch(by_torchrun(2), f'node{rank}.log', 'nodes', NNODES='2', PORT=port,
                   NODE_RANK=str(rank), MASTER_ADDR='127.0.0.1') for rank in (0, 1)]
    codes = [job.wait(600) for job in jobs]
    done = codes == [0, 0] and equal('nodes/iter_4.pth', single)
    count('dist_train.sh, two machines of two processes: weights bit-equal to those of '
          'four processes on one machine', tried=1, equal=int(done))
    assert done, [Path(f'node{rank}.log').read_text()[-3000:] for rank in (0, 1)]


def test_slurm(single, tmp_path, monkeypatch, count):
    """By a stand-in of srun, which starts the processes with Slurm's variables."""
    (tmp_path / 'bin').mkdir()
    for name, content in (('srun', SRUN), ('scontrol', '#!/bin/sh\necho 127.0.0.1\n')):
        path = tmp_path / 'bin' / name
        path.write_text(content)
        path.chmod(0o755)
    job = launch(['bash', str(ROOT / 'tools/slurm_train.sh'), 'part', 'job', CONFIG,
                  'slurm'], 'slurm.log', 'slurm', GPUS='4', GPUS_PER_NODE='2',
                 PATH=f'{tmp_path}/bin:{os.environ["PATH"]}',
                 MASTER_PORT=get_free_port())
    done = job.wait(600) == 0 and equal('slurm/iter_4.pth', single)
    count("slurm_train.sh, Slurm's variables of two machines of two processes: the "
          'same', tried=1, equal=int(done))
    assert done, Path('slurm.log').read_text()[-3000:]


@pytest.mark.parametrize('rank', [0, 1])
def test_a_process_is_killed(tmp_path, monkeypatch, count, rank):
    monkeypatch.chdir(tmp_path)
    job = launch(by_torchrun(2), 'log', 'work', 100, PORT=get_free_port())
    while job.poll() is None and not list(Path('work').glob('iter_*.pth')):
        time.sleep(0.2)
    os.kill(sorted(workers(job))[rank], signal.SIGKILL)
    code, output = job.wait(300), Path('log').read_text()
    lines = re.findall(r'^error: .*', output, re.M)
    clear = code == 137 and len(lines) == 1 and 'Traceback' not in output and \
        f'process {rank} was ended by SIGKILL' in lines[0]
    kept = list(Path('work').glob('iter_*.pth'))
    begin = max((int(path.stem[5:]) for path in kept), default=0)
    again = launch([*by_torchrun(2), '--allow-changes'], 'again', 'work', begin + 2,
                   PORT=get_free_port())
    goes_on = again.wait(300) == 0
    count(f'process {rank} of two killed, command line; resumed from the checkpoint',
          tried=1, clear=int(clear), lost=int(not (kept and goes_on)))
    assert clear and kept, output[-3000:]
    assert goes_on, Path('again').read_text()[-3000:]


FSDP = f"""
_base_ = {str(ROOT / 'configs/cls/soft_tiny_300e.py')!r}
runner_type = 'FlexibleRunner'
strategy = dict(
    type='FSDPStrategy',
    model_wrapper=dict(
        type='MMFullyShardedDataParallel', use_orig_params=True, device_id='cpu'))
"""


def test_fsdp(tmp_path, monkeypatch, count):
    """Without a device MMEngine's strategy wraps for GPU 0."""
    monkeypatch.chdir(tmp_path)
    Path('fsdp.py').write_text(FSDP)
    options = {**CLS, 'train_dataloader.batch_size': 1,
               'default_hooks.checkpoint.save_last': True}
    curves = []
    for name, folder in (('soft_tiny_300e.py', 'plain'), ('fsdp.py', 'sharded')):
        outcomes = together(2, folder, record, name, num_train=4, **options)
        assert all(code == 0 for code, _ in outcomes), outcomes
        curves.append(np.array(json.loads(Path(f'{folder}.json').read_text())))
    error = float((abs(curves[1] - curves[0]) / curves[0]).max())
    parts = sorted(path.name for path in Path('sharded/epoch_2.pth').iterdir())
    count('FSDP in two processes: loss curve is that of the usual training, up to '
          f'{error:.0e}', tried=1, equal=int(error < 1e-3))
    assert error < 1e-3 and parts == ['rank0.pth', 'rank1.pth']
