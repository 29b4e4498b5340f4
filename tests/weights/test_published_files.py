"""Files nobody vouches for: local, over http, safe, broken; written whole."""
import argparse
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from mmengine.runner import CheckpointLoader

from mm_efficient.errors import ExecutionError
from mm_efficient.weights.conversion import CheckpointError, convert_checkpoint
from mm_efficient.weights.reading import convert_file, write_checkpoint


class Handler(SimpleHTTPRequestHandler):
    """Serves a folder; of names with 'cut' only the first half arrives."""

    def copyfile(self, source, outputfile):
        content = source.read()
        if 'cut' in self.path:
            content = content[:len(content) // 2]
        outputfile.write(content)

    def log_message(self, *args):
        self.server.requested.append(self.path)


@pytest.fixture
def server(tmp_path, monkeypatch):
    """(folder, address, requested paths) of a server on loopback."""
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'cache'))
    folder = tmp_path / 'www'
    folder.mkdir()
    httpd = ThreadingHTTPServer(
        ('127.0.0.1', 0), partial(Handler, directory=str(folder)))
    httpd.requested = []
    thread = threading.Thread(target=httpd.serve_forever, daemon=True)
    thread.start()
    yield folder, f'http://127.0.0.1:{httpd.server_port}', httpd.requested
    httpd.shutdown()
    httpd.server_close()


def files_in(folder):
    return [path for path in folder.rglob('*')
            if path.is_file() and path.suffix != '.lock']


def test_scheme_reads_a_training_checkpoint(tmp_path, published):
    path = tmp_path / 'any_name.pth.tar'
    arguments = argparse.Namespace(model='soft_tiny', lr=1e-3)
    torch.save(dict(args=arguments, epoch=3, state_dict_ema=published()), path)
    checkpoint = CheckpointLoader.load_checkpoint(f'published://{path}', 'cpu')
    expected = convert_checkpoint(published())
    assert checkpoint['meta']['mm_efficient']['family'] == 'SOFT'
    assert checkpoint['state_dict'].keys() == expected.state_dict.keys()


def test_legacy_format(tmp_path, published):
    path = tmp_path / 'legacy.pth'
    torch.save(published(), path, _use_new_zipfile_serialization=False)
    assert convert_file(path).arch == 'tiny'


def test_safetensors(tmp_path, published):
    save_file = pytest.importorskip('safetensors.torch').save_file
    save_file(published(), tmp_path / 'soft.safetensors')
    assert convert_file(tmp_path / 'soft.safetensors').arch == 'tiny'
    (tmp_path / 'cut.safetensors').write_bytes(
        (tmp_path / 'soft.safetensors').read_bytes()[:1000000])
    with pytest.raises(CheckpointError, match='an incomplete one'):
        convert_file(tmp_path / 'cut.safetensors')


def test_over_http_and_from_the_cache(server, published):
    folder, address, requested = server
    torch.save(dict(model=published('soft_tiny')), folder / 'best.pth')
    (folder / 'small').mkdir()
    torch.save(dict(model=published('soft_small')), folder / 'small/best.pth')
    for _ in range(2):
        assert convert_file(f'{address}/best.pth').arch == 'tiny'
    assert len(requested) == 1
    # The same name at another address is another file.
    loaded = CheckpointLoader.load_checkpoint(
        f'published://{address}/small/best.pth')
    assert loaded['meta']['mm_efficient']['arch'] == 'small'


def test_missing_on_the_server(server, tmp_path):
    _, address, _ = server
    with pytest.raises(CheckpointError, match=r'/nowhere\.pth: .*404'):
        convert_file(f'{address}/nowhere.pth')
    assert not files_in(tmp_path / 'cache')


def test_download_that_breaks_off_leaves_nothing(server, tmp_path, published):
    folder, address, _ = server
    torch.save(published(), folder / 'cut.pth')
    with pytest.raises(CheckpointError, match=r'/cut\.pth'):
        convert_file(f'{address}/cut.pth')
    assert not files_in(tmp_path / 'cache')


def test_unreachable_server(monkeypatch, tmp_path, server):
    _, address, _ = server
    with pytest.raises(CheckpointError, match='download failed'):
        convert_file(address.rsplit(':', 1)[0] + ':9/soft.pth')


def test_any_other_scheme_of_mmengine(tmp_path, published, monkeypatch):
    torch.save(dict(model=published()), tmp_path / 'soft.pth')
    torch.save(dict(model=Evil(tmp_path / 'harm')), tmp_path / 'evil.pth')
    monkeypatch.setattr(CheckpointLoader, '_schemes',
                        dict(CheckpointLoader._schemes))

    @CheckpointLoader.register_scheme('shelf://')
    def load_from_shelf(filename, map_location=None):
        return torch.load(tmp_path / filename[len('shelf://'):], map_location,
                          weights_only=False)

    assert convert_file('published://shelf://soft.pth').arch == 'tiny'
    with pytest.raises(CheckpointError, match='object of type .*open'):
        convert_file('published://shelf://evil.pth')
    assert not (tmp_path / 'harm').exists()


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, 'w')


def test_nothing_in_the_file_is_run(tmp_path, server, published):
    folder, address, _ = server
    content = dict(model=published(), extra=Evil(tmp_path / 'harm'))
    torch.save(content, folder / 'evil.pth')
    for source in (folder / 'evil.pth', f'{address}/evil.pth'):
        with pytest.raises(CheckpointError, match='object of type .*open'):
            convert_file(source)
    assert not (tmp_path / 'harm').exists()


@pytest.fixture
def trained(tmp_path, published):
    """A checkpoint that MMEngine has written, and its weights."""
    from mmengine.config import Config
    from mmengine.logging import MessageHub
    hub = MessageHub('trained')
    for _ in range(3):
        hub.update_scalar('train/loss', np.float32(1.5))
    hub.update_info('loop', {'epoch': np.int64(3), 'rates': np.ones(2)})
    path, state_dict = tmp_path / 'epoch_3.pth', convert_checkpoint(
        published()).state_dict
    torch.save(dict(
        meta=dict(mmengine_version='0.10.7', cfg=Config(dict(a=1)).pretty_text,
                  dataset_meta=dict(classes=('a', ), palette=np.zeros((1, 3), int))),
        message_hub=hub.state_dict(), state_dict=state_dict), path)
    return path, state_dict


@pytest.mark.skipif(not hasattr(torch.serialization, 'safe_globals'),
                    reason='PyTorch before 2.5 reads nothing but tensors safely')
def test_checkpoint_of_mmengine_is_read(trained):
    path, state_dict = trained
    loaded = CheckpointLoader.load_checkpoint(f'published://{path}')
    assert loaded['state_dict'].keys() == state_dict.keys()
    assert loaded['message_hub']['log_scalars']['train/loss'].mean() == 1.5
    with pytest.raises(CheckpointError, match='written by MMEngine'):
        convert_file(path)


@pytest.mark.parametrize('spoil', [
    lambda content, evil: content['message_hub'].update(evil=evil),
    lambda content, evil: content['message_hub']['log_scalars'][
        'train/loss'].__dict__.update(_statistics_methods=evil)])
def test_a_stranger_who_pretends_to_be_mmengine(trained, tmp_path, spoil):
    content = torch.load(trained[0], weights_only=False)
    spoil(content, Evil(tmp_path / 'harm'))
    torch.save(content, trained[0])
    with pytest.raises(CheckpointError, match='Python object of type'):
        CheckpointLoader.load_checkpoint(f'published://{trained[0]}')
    assert not (tmp_path / 'harm').exists()


@pytest.mark.parametrize('content', [
    b'', b'<html>not found</html>', b'PK\x03\x04' + bytes(900), bytes(50)
])
def test_no_checkpoint_at_all(content, tmp_path):
    path = tmp_path / 'soft.pth'
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match='soft.pth: not a checkpoint'):
        convert_file(path)


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('share', [1e-4, 0.5, 0.999])
def test_truncated_file(share, zipped, tmp_path, published):
    path = tmp_path / 'soft.pth'
    torch.save(published(), path, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[:int(share * len(content))])
    with pytest.raises(CheckpointError, match='an incomplete one'):
        convert_file(path)


def test_no_such_file(tmp_path):
    with pytest.raises(CheckpointError, match='soft.pth: no such file'):
        convert_file(f'published://{tmp_path}/soft.pth')


def test_error_names_the_file(tmp_path):
    torch.save(dict(epoch=1), tmp_path / 'odd.pth')
    with pytest.raises(CheckpointError, match='odd.pth: holds no tensors'):
        convert_file(tmp_path / 'odd.pth')


def test_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / 'new' / 'soft.pth'
    write_checkpoint(dict(epoch=1), path)
    with pytest.raises(ExecutionError, match='soft.pth cannot be written: .*lambda'):
        write_checkpoint(dict(fault=lambda: None), path)
    assert files_in(tmp_path) == [path]
    assert torch.load(path) == dict(epoch=1)
