"""Imported before any test module: repairs precede every import of mmcv.ops."""
import argparse
import gc
import hashlib
import json
import os
import re
import runpy
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

# Tests run in several processes, see pyproject.toml: one thread each, also for the
# tools that they start. Read when PyTorch is imported.
os.environ.setdefault('OMP_NUM_THREADS', '1')
# Whoever runs them may have weights in checkpoints/
os.environ['MM_EFFICIENT_CHECKPOINTS'] = str(Path(__file__).parent / 'no_checkpoints')
# Tests connect to this machine only, and so do the processes that they start
sys.path.insert(0, str(Path(__file__).parent / 'no_network'))
os.environ['PYTHONPATH'] = os.pathsep.join(
    filter(None, [sys.path[0], os.environ.get('PYTHONPATH')]))


# Tests with these marks run only if -m names the mark
OPTIONAL = ('cuda', 'slow', 'trials', 'zoo')
# Larger variants, and tests in which they only repeat what smaller ones show
LARGER = re.compile(r'soft_(small|medium|large|huge)|pvtv2_b[234]|pvt_b[234]'
                    r'|swiftformer_l|(lowformer_|^)(b2|b3|e3)|reduceformer_b[23]')
REPEATED = {'test_matches_the_published_code', 'test_agrees_with_timm',
            'test_reference_figures', 'test_every_published_variant_is_recognised',
            'test_every_tensor_of_a_file_in_checkpoints_is_loaded'}


def selects(mark, arguments):
    """Whether ``-m`` selects tests with a mark."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('-m', default='')
    expression = parser.parse_known_args(arguments)[0].m
    return mark in expression.replace(f'not {mark}', '')


# All other tests are for the CPU. Read when CUDA starts, which happens on import of
# some packages; processes of pytest-xdist inherit it.
if not selects('cuda', sys.argv[1:]) and 'PYTEST_XDIST_WORKER' not in os.environ:
    os.environ['CUDA_VISIBLE_DEVICES'] = ''

import no_network  # noqa: E402
import pytest  # noqa: E402
import timm  # noqa: E402
import torch  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402

import mm_efficient  # noqa: E402, F401
from mm_efficient.models import SOFT  # noqa: E402

REFERENCE = Path(__file__).parent / 'reference'


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """One process for what is timed on a GPU, part 2, and for trials, which count."""
    expression = config.option.markexpr
    options = ['-m', expression]
    timed = selects('part2', options) or 'part' not in expression
    alone = selects('trials', options) or selects('cuda', options) and timed
    return 0 if alone else None


def pytest_collection_modifyitems(config, items):
    """Leave out tests with optional marks that ``-m`` does not select."""
    for item in items:
        name, _, parameters = item.name.partition('[')
        if name in REPEATED and LARGER.search(parameters):
            item.add_marker('slow')
    left_out = {mark for mark in OPTIONAL
                if not selects(mark, ['-m', config.option.markexpr])}
    others = [item for item in items
              if left_out.isdisjoint(mark.name for mark in item.iter_markers())]
    config.hook.pytest_deselected(items=[*{*items} - {*others}])
    items[:] = others


def pytest_collection_finish():
    """Keep the collector off what lives as long as the tests, millions of objects.

    Every data set that is serialised collects.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, scope='session')
def unformatted_configs():
    """Runners write their config four times; formatting takes longer than the rest."""
    with pytest.MonkeyPatch.context() as patch:
        # Imported by OpenMMLab's MMEngine at the top, by OneDL's when it is needed
        for module in ('mmengine.config.config', 'yapf.yapflib.yapf_api'):
            patch.setattr(f'{module}.FormatCode',
                          lambda text, **options: (text, True), raising=False)
        yield


@pytest.fixture(autouse=True)
def no_connections():
    """Attempts to reach another machine fail the test, also if the code carries on."""
    yield
    attempts, no_network.ATTEMPTS[:] = no_network.ATTEMPTS[:], []
    assert not attempts


@pytest.fixture(autouse=True)
def no_default_scope():
    """A runner leaves its scope behind, in which later tests would build."""
    yield
    DefaultScope._instance_dict.clear()


@pytest.fixture(autouse=True)
def no_checkpoints_left(request):
    """Remove a test's checkpoints: pytest keeps folders, and they are gigabytes."""
    yield
    # None when the run is interrupted
    folder = (getattr(request.node, 'funcargs', None) or {}).get('tmp_path')
    for path in folder.rglob('*.pth*') if folder else ():
        if path.is_file():
            path.unlink()


@pytest.fixture
def checkpoints(tmp_path, monkeypatch):
    """The folder ``checkpoints/`` of an empty working folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MM_EFFICIENT_CHECKPOINTS')
    folder = tmp_path / 'checkpoints'
    folder.mkdir()
    return folder


@pytest.fixture
def shallow(monkeypatch):
    """SOFT-Tiny has one block per stage, half the parameters to train and save."""
    arch = {**SOFT.ARCHS['tiny'], 'depths': [1, 1, 1, 1]}
    monkeypatch.setitem(SOFT.ARCHS, 'tiny', arch)


@pytest.fixture(scope='session')
def published():
    """Function from a variant to synthetic tensors like its published ones."""
    synth_state_dict = runpy.run_path(
        str(REFERENCE / 'synth.py'))['synth_state_dict']

    def make(variant='soft_tiny', seed=0):
        (path,) = REFERENCE.glob(f'*/{variant}.json')
        manifest = json.loads(path.read_text())
        return synth_state_dict(manifest['state_dict'], seed)

    return make


class HubHandler(BaseHTTPRequestHandler):
    """The two requests that huggingface_hub makes for a file of a model."""

    def do_GET(self):
        match = re.fullmatch(r'/(.+)/resolve/main/model.safetensors', self.path)
        content = self.server.files.get(match and match[1])
        self.server.requested.append(f'{self.command} {self.path}')
        if content is None:
            self.send_response(404)
            self.send_header('X-Error-Code', 'RepoNotFound')
            self.send_header('Content-Length', '0')
            self.end_headers()
            return
        self.send_response(200)
        self.send_header('ETag', f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header('X-Repo-Commit', '0' * 40)
        self.send_header('Content-Length', str(len(content)))
        self.end_headers()
        if self.command == 'GET':
            self.wfile.write(self.server.damage(content))

    do_HEAD = do_GET

    def log_message(self, *args):
        pass


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Stand-in of the Hugging Face hub on loopback, here and for processes started.

    It has the ``files`` of models, ``damage`` for their content, and the paths
    ``requested``.
    """
    httpd = ThreadingHTTPServer(('127.0.0.1', 0), HubHandler)
    httpd.files, httpd.requested, httpd.damage = {}, [], bytes
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{httpd.server_port}'
    for variable, value in dict(
            NO_PROXY='127.0.0.1', no_proxy='127.0.0.1', HF_ENDPOINT=address,
            HF_HUB_OFFLINE='0', HF_HUB_CACHE=str(tmp_path / 'cache')).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', address)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr('huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE',
                        address + '/{repo_id}/resolve/{revision}/{filename}')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE',
                        str(tmp_path / 'cache'))
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture(scope='session')
def timm_file():
    """Content of a timm file of SwiftFormer-XS, in which every value is 2."""
    from safetensors.torch import save
    with torch.device('meta'):
        model = timm.create_model('swiftformer_xs')
    return save({name: torch.full(tensor.shape, 2, dtype=tensor.dtype)
                 for name, tensor in model.state_dict().items()})
