"""Weights known by name, from a stand-in of the Hugging Face hub on loopback."""
import hashlib
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from mmengine.runner import CheckpointLoader

from mm_efficient.weights import download as online
from mm_efficient.weights.conversion import CheckpointError
from mm_efficient.weights.download import published_weights, sha256
from mm_efficient.weights.reading import convert_file

NAME = 'timm/swiftformer_xs.dist_in1k'


class Handler(BaseHTTPRequestHandler):
    """The two requests that huggingface_hub makes for a file."""

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
    """Server with ``files``, ``damage`` and the paths ``requested``."""
    httpd = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    httpd.files, httpd.requested, httpd.damage = {}, [], bytes
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    address = f'http://127.0.0.1:{httpd.server_port}'
    for variable in ('NO_PROXY', 'no_proxy'):
        monkeypatch.setenv(variable, '127.0.0.1')
    monkeypatch.setattr('huggingface_hub.constants.ENDPOINT', address)
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_OFFLINE', False)
    monkeypatch.setattr('huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE',
                        address + '/{repo_id}/resolve/{revision}/{filename}')
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE',
                        str(tmp_path / 'cache'))
    yield httpd
    httpd.shutdown()
    httpd.server_close()


@pytest.fixture
def timm_file():
    """Content of a timm file of SwiftFormer-XS."""
    from safetensors.torch import save
    with torch.device('meta'):
        model = timm.create_model('swiftformer_xs')
    return save({name: torch.zeros(tensor.shape, dtype=tensor.dtype)
                 for name, tensor in model.state_dict().items()})


@pytest.mark.parametrize('name', [NAME, 'swiftformer_xs'])
def test_by_name_and_from_the_cache(hub, timm_file, name):
    hub.files[NAME] = timm_file
    for _ in range(2):
        loaded = CheckpointLoader.load_checkpoint(f'published://{name}')
        origin = loaded['meta']['mm_efficient']
        assert (origin['arch'], origin['layout']) == ('xs', 'timm')
    assert sum(line.startswith(f'GET /{NAME}') for line in hub.requested) == 1


def test_file_that_changed_on_the_way_is_refused(hub, timm_file, tmp_path):
    hub.files[NAME] = timm_file
    hub.damage = lambda content: content[:-1] + b'x'
    with pytest.raises(CheckpointError, match=f'{NAME}: expected a file with SHA-256'):
        convert_file(NAME)
    assert not any(file.is_file() and file.stat().st_size > 1000
                   for file in tmp_path.rglob('*'))
    hub.damage = bytes
    assert convert_file(NAME).arch == 'xs'


def test_unknown_to_the_hub(hub):
    with pytest.raises(CheckpointError, match='timm/nowhere.in1k: download '
                       'from the Hugging Face hub failed'):
        convert_file('published://timm/nowhere.in1k')


def test_hub_out_of_reach(hub, monkeypatch):
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # between attempts
    hub.shutdown()
    hub.server_close()
    with pytest.raises(CheckpointError, match='Check the connection'):
        convert_file(NAME)


def test_local_file_comes_first(tmp_path, monkeypatch, published):
    monkeypatch.chdir(tmp_path)
    torch.save(published('soft_tiny'), 'swiftformer_xs')
    assert convert_file('swiftformer_xs').family == 'SOFT'


def test_unknown_name():
    with pytest.raises(FileNotFoundError, match='known: .*ecoformer_pvt_b0'):
        convert_file('published://ecoformer_b0')


def test_names_and_addresses():
    """Names are those of configs; what timm has is where timm gets it."""
    weights = published_weights()
    assert weights['ecoformer_twins_s'].endswith('/v1.0/twins_svt_s_ecoformer.pth')
    hub = {name: address[len('timm/'):] for name, address in weights.items()
           if address.startswith('timm/')}
    assert hub
    for name, address in hub.items():
        assert address.split('.')[0] == name
        assert timm.get_pretrained_cfg(address).hf_hub_id == f'timm/{address}'


def test_hash_in_the_name_is_checked(tmp_path, monkeypatch, published):
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    torch.save(published('soft_tiny'), tmp_path / 'soft.pth')
    digits = sha256(tmp_path / 'soft.pth')[:8]
    served = []

    def download(url, path, progress):
        served.append(url)
        with open(path, 'wb') as file:
            file.write((tmp_path / 'soft.pth').read_bytes())

    monkeypatch.setattr(online.torch.hub, 'download_url_to_file', download)
    assert convert_file(f'https://example.org/soft-{digits}.pth').arch == 'tiny'
    for _ in range(2):
        with pytest.raises(CheckpointError, match='expected .* SHA-256 01234567,'):
            convert_file('https://example.org/soft-01234567.pth')
    assert len(served) == 3
