"""tools/model_converters/convert.py, as a user runs it."""
import hashlib
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / 'tools' / 'model_converters' / 'convert.py'


@pytest.fixture
def convert(capsys):
    """Function that runs the tool in this process and returns (exit code, stdout)."""
    main = runpy.run_path(str(SCRIPT))['main']

    def run(source, target):
        capsys.readouterr()
        code = 0
        try:
            main([str(source), str(target)])
        except SystemExit as stop:
            code = stop.code
        return code, capsys.readouterr().out

    return run


def test_as_a_command(tmp_path, published):
    source, target = tmp_path / 'soft.pth', tmp_path / 'new' / 'ours.pth'
    torch.save(dict(state_dict_ema=published()), source)
    result = subprocess.run(
        [sys.executable, str(SCRIPT), str(source), str(target)],
        cwd=tmp_path, env=dict(os.environ, PYTHONPATH=os.pathsep.join(
            [str(ROOT), os.environ['PYTHONPATH']])),
        capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for fact in ('SOFT', 'tiny', '13,069,056 parameters', 'state_dict_ema',
                 'configs/cls/soft_tiny_norm_300e.py',
                 hashlib.sha256(target.read_bytes()).hexdigest()):
        assert fact in result.stdout
    written = torch.load(target, weights_only=True)
    assert written['meta']['mm_efficient']['arch'] == 'tiny'
    assert written['state_dict']['head.fc.bias'].equal(
        published()['head.bias'])
    assert sorted(tmp_path.rglob('*.*')) == [target, source]


def test_replaces_an_older_result(tmp_path, published, convert):
    source, target = tmp_path / 'soft.pth', tmp_path / 'ours.pth'
    torch.save(published(), source)
    target.write_text('older')
    assert convert(source, target)[0] == 0
    assert 'state_dict' in torch.load(target, weights_only=True)


def test_bad_input_is_one_line_and_leaves_nothing(tmp_path, published, convert):
    source, target = tmp_path / 'soft.pth', tmp_path / 'ours.pth'
    tensors = published()
    del tensors['pos_embed3']
    torch.save(tensors, source)
    error, out = convert(source, target)
    assert not out
    assert error.startswith('error: ') and '\n' not in error
    assert 'missing: pos_embed3' in error
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize('source, target, message', [
    ('none.pth', 'ours.pth', 'no such file'),
    ('soft.pth', 'soft.pth', 'is read and would be overwritten'),
    ('soft.pth', 'folder', 'is a folder'),
    ('soft.pth', 'ours.safetensors', 'a PyTorch file'),
])
def test_bad_arguments(source, target, message, tmp_path, convert):
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'soft.pth').write_text('precious')
    error, _ = convert(tmp_path / source, tmp_path / target)
    assert message in error
    assert (tmp_path / 'soft.pth').read_text() == 'precious'
    assert sorted(p.name for p in tmp_path.iterdir()) == ['folder', 'soft.pth']


def huge(tensor):
    return torch.zeros(1).expand(2 ** 40)


@pytest.mark.parametrize('change, message', [
    (lambda tensor: tensor.to_sparse(), 'sparse'),
    (lambda tensor: tensor.to(torch.float8_e4m3fn), 'float8_e4m3fn'),
    (lambda tensor: tensor.int(), 'expected torch.float32, got torch.int32'),
    (lambda tensor: tensor.bool(), 'expected torch.float32, got torch.bool'),
    (lambda tensor: tensor.to('meta'), 'meta|no values'),
    (huge, '1099511627776'),
], ids=['sparse', 'float8', 'int', 'bool', 'meta', 'huge'])
def test_tensors_of_another_kind(tmp_path, published, convert, change, message):
    source, target = tmp_path / 'soft.pth', tmp_path / 'ours.pth'
    tensors = published()
    tensors['head.weight'] = change(tensors['head.weight'])
    try:
        torch.save(tensors, source)
    except KeyError as error:  # PyTorch 2.1 has float8, but no files of it
        pytest.skip(str(error))
    error, _ = convert(source, target)
    assert error.startswith('error: ') and re.search(message, error)
    assert '\n' not in error and not target.exists()


def test_a_dict_that_holds_itself(tmp_path, published, convert):
    content = dict(state_dict=published())
    content['self'] = content
    torch.save(content, tmp_path / 'soft.pth')
    assert convert(tmp_path / 'soft.pth', tmp_path / 'ours.pth')[0] == 0


@pytest.mark.parametrize('target', ['', 'a\0.pth', '/proc/x.pth', 'soft.pth/x.pth'])
def test_destinations_that_cannot_be_written(tmp_path, monkeypatch, convert, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'soft.pth').write_text('precious')
    error, _ = convert('soft.pth', target)
    assert error.startswith('error: ') and '\n' not in error
    assert [path.name for path in tmp_path.iterdir()] == ['soft.pth']


def test_a_full_disk(tmp_path, published, convert, monkeypatch):
    from mm_efficient.weights import reading

    def save(content, path):
        path.write_bytes(b'part')
        raise RuntimeError('[enforce fail at inline_container.cc]\nwrite failed')

    torch.save(published(), tmp_path / 'soft.pth')
    monkeypatch.setattr(reading.torch, 'save', save)
    error, _ = convert(tmp_path / 'soft.pth', tmp_path / 'ours.pth')
    assert error.startswith('error: ') and 'ours.pth cannot be written' in error
    assert '\n' not in error and len(list(tmp_path.iterdir())) == 1
