"""Processes are joined; then one of every machine checks, and its errors end all."""
import json
import os
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config

from mm_efficient import errors
from mm_efficient.errors import InputError, ReportedError, error_line
from mm_efficient.runs import distributed
from mm_efficient.runs.distributed import (
    first_process_reports,
    join_processes,
    once_per_machine,
)

ROOT = Path(__file__).parents[2]


def test_single_process_is_left_alone():
    cfg = Config()
    join_processes(cfg, 'none')
    assert cfg.launcher == 'none' and not torch.distributed.is_initialized()
    assert 'model_wrapper_cfg' not in cfg
    assert once_per_machine(lambda: 3) == 3


def test_with_a_gpu_the_backend_is_the_configs(monkeypatch):
    started = []
    monkeypatch.setattr(distributed, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(distributed, 'set_multi_processing', lambda distributed: None)
    monkeypatch.setattr(distributed, 'init_dist',
                        lambda launcher, **kwargs: started.append((launcher, kwargs)))
    cfg = Config(dict(env_cfg=dict(dist_cfg=dict(backend='nccl', timeout=9))))
    join_processes(cfg, 'pytorch')
    assert started == [('pytorch', dict(backend='nccl', timeout=9))]
    assert cfg.launcher == 'pytorch' and 'model_wrapper_cfg' not in cfg


@pytest.mark.parametrize('launcher, variable', [
    ('pytorch', 'LOCAL_RANK'), ('slurm', 'SLURM_LOCALID'),
    ('mpi', 'OMPI_COMM_WORLD_LOCAL_RANK'), ('none', 'LOCAL_RANK')])
@pytest.mark.parametrize('rank', ['0', '1'])
def test_one_process_tells_what_all_have_found(monkeypatch, capsys, launcher, variable,
                                               rank):
    monkeypatch.setenv(variable, rank)
    monkeypatch.setattr(errors, 'REPORT_SECONDS', 0)
    with pytest.raises(SystemExit) as stop, error_line():
        with first_process_reports(launcher):
            raise InputError('wrong')
    tells = rank == '0' or launcher == 'none'
    assert stop.value.code == ('error: wrong' if tells else 1)


def test_other_errors_are_told_by_everyone(monkeypatch):
    monkeypatch.setenv('LOCAL_RANK', '1')
    with pytest.raises(ZeroDivisionError), first_process_reports('pytorch'):
        raise ZeroDivisionError


def test_an_error_of_another_process(monkeypatch):
    """Of four processes on two machines, the first of the second one fails."""
    outcomes = [('seed', None), (None, None), (None, 'OSError: no file'), (None, None)]
    monkeypatch.setenv('LOCAL_RANK', '1')
    monkeypatch.setattr(distributed, 'is_distributed', lambda: True)
    monkeypatch.setattr(distributed, 'all_gather_object', lambda mine: outcomes)
    with pytest.raises(ReportedError, match='process 2 has failed: OSError: no file'):
        once_per_machine(pytest.fail)
    outcomes[2] = ('other', None)
    assert once_per_machine(pytest.fail) == 'seed'


class Handler(SimpleHTTPRequestHandler):
    """Serves the working folder and counts."""

    def do_GET(self):
        self.server.requested.append(self.path)
        super().do_GET()

    def log_message(self, *args):
        pass


@pytest.fixture
def server(tmp_path, monkeypatch):
    """Address of a server of ``tmp_path``, and what was ``requested`` from it."""
    for variable, value in dict(
            NO_PROXY='127.0.0.1', no_proxy='127.0.0.1', OMP_NUM_THREADS='1',
            TORCH_HOME=str(tmp_path / 'cache'), PYTHONPATH=os.pathsep.join(
                [str(ROOT), os.environ['PYTHONPATH']])).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.chdir(tmp_path)
    httpd = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    httpd.requested = []
    httpd.address = f'http://127.0.0.1:{httpd.server_port}'
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


SCRIPT = '''
import json, sys
from mmengine.dist import get_rank
from mm_efficient import runs
from mm_efficient.models import classifiers
from mm_efficient.runs import mini, training
from mm_efficient.weights import loading, reading

calls = []

def count(module, name):
    function = getattr(module, name)
    def counted(*args, **kwargs):
        calls.append(name)
        return function(*args, **kwargs)
    setattr(module, name, counted)

for name in ('check_model', 'check_teacher', 'check_splits', 'find_start'):
    count(training, name)
count(reading, 'convert_checkpoint')
count(loading, 'read_untrusted')
generate = mini.generate_dataset
mini.generate_dataset = lambda name: generate(name, num_train=4, num_val=2)
address = sys.argv[1]
cfg = runs.prepare_training(
    'swiftformer_xs_300e.py', pretrained='swiftformer_xs',
    work_dir='work', mini=True, launcher='pytorch',
    cfg_options={'model.teacher.model_name': 'test_resnet',
                 'model.teacher.checkpoint': f'{address}/teacher.pth',
                 'log_level': 'ERROR'})
checked = list(calls)
model = runs.build_runner(cfg).model.module
model.init_weights()
classifiers.build_teacher(model.teacher_cfg)
weights = model.backbone.state_dict().values()
with open(f'{get_rank()}.json', 'w') as file:
    json.dump(dict(checked=checked, loaded=calls[len(checked):],
                   norm=sum(w.double().abs().sum().item() for w in weights)), file)
'''


def test_one_process_checks_and_downloads(server, hub, timm_file):
    hub.files['timm/swiftformer_xs.dist_in1k'] = timm_file
    torch.save(timm.create_model('test_resnet', num_classes=5).state_dict(),
               'teacher.pth')
    Path('script.py').write_text(SCRIPT)
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone',
         '--nproc_per_node=2', 'script.py', server.address],
        check=True, timeout=300)
    assert server.requested == ['/teacher.pth']
    assert sum(line.startswith('GET /timm/') for line in hub.requested) == 1
    first, second = (json.loads(Path(f'{rank}.json').read_text()) for rank in (0, 1))
    assert sorted(first['checked']) == [
        'check_model', 'check_splits', 'check_teacher', 'convert_checkpoint',
        'find_start', 'read_untrusted']
    assert first['loaded'] == []  # what the checks had read
    assert second['checked'] == []
    assert sorted(second['loaded']) == ['convert_checkpoint', 'read_untrusted']
    assert first['norm'] == second['norm'] > 0


@pytest.mark.slow  # the parts of it are above, exit codes in tests/tools
def test_an_error_of_the_first_process_ends_all(server):
    Path('weights.pth').write_bytes(b'not a checkpoint')
    done = subprocess.run(
        ['bash', ROOT / 'tools/dist_train.sh', 'soft_tiny_300e.py', '2', '--mini',
         '--pretrained', f'published://{server.address}/weights.pth',
         '--work-dir', 'work'],
        env=dict(os.environ, PYTHON=sys.executable, PORT='29581'),
        capture_output=True, text=True, timeout=300)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and 'not a checkpoint' in errors[0]
    assert 'model.backbone.init_cfg' in errors[0]
    assert '--pretrained none' in errors[0]
    assert server.requested == ['/weights.pth']
    assert not Path('work').exists() and not Path('data').exists()
