"""Weights known by name, from a stand-in of the Hugging Face hub on loopback."""
import multiprocessing
import time

import pytest
import timm
import torch
from mmengine.runner import CheckpointLoader

from mm_efficient.weights import download as online
from mm_efficient.weights.conversion import CheckpointError
from mm_efficient.weights.download import fetch, sha256
from mm_efficient.weights.locating import published_weights
from mm_efficient.weights.reading import convert_file

NAME = 'timm/swiftformer_xs.dist_in1k'


def downloads(hub):
    return sum(line.startswith(f'GET /{NAME}') for line in hub.requested)


@pytest.mark.parametrize('name', [NAME, 'swiftformer_xs'])
def test_by_name_and_from_the_cache(hub, timm_file, name):
    hub.files[NAME] = timm_file
    for _ in range(2):
        loaded = CheckpointLoader.load_checkpoint(f'published://{name}')
        origin = loaded['meta']['mm_efficient']
        assert (origin['arch'], origin['layout']) == ('xs', 'timm')
    assert downloads(hub) == 1


def test_of_two_processes_one_downloads(hub, timm_file):
    """Without a launcher, as in other people's training scripts."""
    hub.files[NAME] = timm_file
    hub.damage = lambda content: time.sleep(1) or content
    fork = multiprocessing.get_context('fork')
    processes = [fork.Process(target=fetch, args=(NAME, )) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert downloads(hub) == 1


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
    with pytest.raises(CheckpointError, match='/timm/nowhere.in1k/resolve/main/model.'
                       'safetensors: download failed .*404.*pass its path'):
        convert_file('published://timm/nowhere.in1k')


def test_hub_out_of_reach(hub, monkeypatch, checkpoints):
    """The error names the address, the reason, and where to put the file."""
    monkeypatch.setattr('time.sleep', lambda seconds: None)  # between attempts
    hub.shutdown()
    hub.server_close()
    with pytest.raises(CheckpointError) as error:
        convert_file('swiftformer_xs')
    for part in (f'http://127.0.0.1:{hub.server_port}/{NAME}/resolve/main/model.safete',
                 'download failed (', 'Check the address and the connection',
                 f'save it as {checkpoints}/swiftformer_xs.safetensors'):
        assert part in str(error.value)


def test_local_file_comes_first(tmp_path, monkeypatch, published):
    monkeypatch.chdir(tmp_path)
    torch.save(published('soft_tiny'), 'swiftformer_xs')
    assert convert_file('swiftformer_xs').family == 'SOFT'


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
