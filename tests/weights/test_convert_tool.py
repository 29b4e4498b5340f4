"""tools/model_converters/convert.py, as a user runs it."""
import hashlib
import os
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
        cwd=tmp_path, env=dict(os.environ, PYTHONPATH=str(ROOT)),
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
    ('soft.pth', 'soft.pth', 'the published file itself'),
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
