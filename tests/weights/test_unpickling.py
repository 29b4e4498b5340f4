"""No file runs anything, whatever reads it; MMEngine's own checkpoints are read."""
import io
import pickle
import sys
import tarfile
import types
import zipfile
from argparse import Namespace
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from torch import _weights_only_unpickler

from mm_efficient.weights import unpickling
from mm_efficient.weights.checking import check_checkpoint
from mm_efficient.weights.family import CheckpointError
from mm_efficient.weights.unpickling import load_plain

HARM = 'harm'  # the file that a payload creates in the working folder


class Call:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def payloads():
    """Objects that create a file when they are unpickled in full, by name."""
    import os
    import subprocess
    yield 'open', Call(open, HARM, 'w')
    yield 'system', Call(os.system, f'touch {HARM}')
    yield 'exec', Call(exec, f'open({HARM!r}, "w")')
    yield 'eval', Call(eval, f'open({HARM!r}, "w")')
    yield 'popen', Call(subprocess.Popen, ['touch', HARM])
    yield 'path', Call(Path.touch, Path(HARM))
    yield 'getattr', Call(getattr, HistoryBuffer, '__init__')
    yield 'load', Call(pickle.loads, pickle.dumps(Call(open, HARM, 'w')))
    yield 'fromfile', Call(__import__, 'this')
    yield 'numpy', Call(np.load, HARM, None, True)
    yield 'torch', Call(torch.load, HARM)
    yield 'hub', Call(torch.hub.load, '.', 'x')


def history(**state):
    buffer = HistoryBuffer([1.], [1])
    vars(buffer).update(state)
    return buffer


# Where a payload hides in what looks like a checkpoint
PLACES = dict(
    alone=lambda evil: evil,
    nested=lambda evil: dict(state_dict={'a': torch.ones(1)}, deep=[(dict(x=evil), )]),
    namespace=lambda evil: dict(model={}, args=Namespace(out=evil)),
    mmengine=lambda evil: dict(
        meta=dict(mmengine_version='0.10.7', epoch=1, iter=1, x=evil), optimizer={},
        message_hub=dict(log_scalars=dict(loss=history())), state_dict={}),
    history=lambda evil: dict(message_hub=history(_statistics_methods=dict(mean=evil))),
    array=lambda evil: dict(meta=np.array([evil, None], object)),
    config=lambda evil: dict(meta=ConfigDict(a=evil)))


def written(content, kind, path):
    """Write a file in one of the forms that PyTorch reads or may be given."""
    if kind == 'pickle':
        path.write_bytes(pickle.dumps(content))
    elif kind == 'tar':
        with tarfile.open(path, 'w') as tar:
            for name in ('storages', 'tensors', 'pickle'):
                data = pickle.dumps(0 if name != 'pickle' else content)
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == 'zip')
    return path


@pytest.mark.parametrize('kind', ['zip', 'legacy', 'pickle', 'tar'])
@pytest.mark.parametrize('payload', [
    pytest.param(evil, id=name) for name, evil in payloads()])
def test_no_payload_runs(tmp_path, monkeypatch, payload, kind):
    monkeypatch.chdir(tmp_path)
    for place, hide in PLACES.items():
        path = written(hide(payload), kind, tmp_path / f'{place}.pth')
        for read in (load_plain, check_checkpoint, CheckpointLoader.load_checkpoint):
            with pytest.raises(CheckpointError) as error:
                read(str(path))
            message = str(error.value)
            assert path.name in message and '\n' not in message
            assert 'weights_only' not in message and 'directly' not in message
            # nothing of the standard library can be allowed
            assert unpickling.ALLOW_VARIABLE not in message
    assert not Path(HARM).exists()


def test_the_payloads_would_run(tmp_path, monkeypatch):
    """What the test above proves: read in full, the files do harm."""
    monkeypatch.chdir(tmp_path)
    path = written(PLACES['mmengine'](dict(payloads())['open']), 'zip',
                   tmp_path / 'evil.pth')
    torch.load(path, weights_only=False)
    assert Path(HARM).exists()


@pytest.mark.parametrize('payload, name', [
    (dict(payloads())['system'], 'posix.system'),
    (dict(payloads())['open'], 'open'), (dict(payloads())['exec'], 'exec')])
def test_what_was_refused_is_named(tmp_path, payload, name):
    path = written(dict(state_dict={}, x=payload), 'zip', tmp_path / 'evil.pth')
    with pytest.raises(CheckpointError, match=rf'evil.pth.* type \w*\.?{name}, .*run'):
        load_plain(path)


def test_a_class_is_allowed_by_name(tmp_path, monkeypatch):
    module = types.ModuleType('theirs')
    exec('class Options:\n    def __init__(self): self.lr = 1', vars(module))
    exec('def function(): pass', vars(module))
    monkeypatch.setitem(sys.modules, 'theirs', module)
    torch.save(dict(model={}, args=module.Options()), tmp_path / 'theirs.pth')
    with pytest.raises(CheckpointError, match='SAFE_CLASSES=theirs.Options'):
        load_plain(tmp_path / 'theirs.pth')
    monkeypatch.setenv(unpickling.ALLOW_VARIABLE, 'theirs.Options')
    assert load_plain(tmp_path / 'theirs.pth')['args'].lr == 1
    for wrong in ('os.system', 'subprocess.Popen', 'open', 'theirs.function',
                  'theirs.nothing', 'builtins.getattr'):
        monkeypatch.setenv(unpickling.ALLOW_VARIABLE, wrong)
        with pytest.raises(ValueError, match=f'{unpickling.ALLOW_VARIABLE}: {wrong}'):
            load_plain(tmp_path / 'theirs.pth')


@pytest.mark.parametrize('variable', ['TORCH_FORCE_WEIGHTS_ONLY_LOAD',
                                      'TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD'])
def test_variables_of_pytorch_change_nothing(tmp_path, monkeypatch, variable):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, '1')
    torch.save(PLACES['mmengine'](None), 'good.pth')
    torch.save(PLACES['mmengine'](dict(payloads())['open']), 'evil.pth')
    for read in (load_plain, CheckpointLoader.load_checkpoint):
        assert read('good.pth')['message_hub']['log_scalars']['loss'].mean() == 1
        with pytest.raises(CheckpointError):
            read('evil.pth')
    assert not Path(HARM).exists()


def test_a_config_inside_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    """MMEngine would execute this text when it resumes."""
    monkeypatch.chdir(tmp_path)
    torch.save(dict(meta=dict(config=f'open({HARM!r}, "w")', epoch=1), state_dict={}),
               'evil.pth')
    loaded = CheckpointLoader.load_checkpoint('evil.pth')
    assert loaded['meta'] == dict(epoch=1)


@pytest.fixture
def old_pytorch():
    """PyTorch before 2.5, which has no list of safe globals, and allows less."""
    allowed = _weights_only_unpickler._get_allowed_globals()
    allowed = {name: each for name, each in allowed.items()
               if name.startswith(('torch.', 'collections.OrderedDict'))
               and name != 'torch.device'}
    serialization = types.SimpleNamespace(**{
        key: value for key, value in vars(torch.serialization).items()
        if key != 'safe_globals'})
    with mock.patch.object(unpickling.torch, 'serialization', serialization), \
            mock.patch.object(_weights_only_unpickler, '_get_allowed_globals',
                              allowed.copy):
        yield


@pytest.mark.parametrize('kind', ['zip', 'legacy', 'tar'])
def test_old_pytorch(tmp_path, monkeypatch, old_pytorch, kind):
    monkeypatch.chdir(tmp_path)
    for name, payload in payloads():
        for place, hide in PLACES.items():
            path = written(hide(payload), kind, tmp_path / f'{name}_{place}.pth')
            with pytest.raises(CheckpointError, match=r'\.pth: '):
                load_plain(path)
    assert not Path(HARM).exists()
    if kind != 'tar':
        plain = dict(milestones=Counter([8, 11]), epochs={1}, dtype=torch.bfloat16)
        path = written(dict(PLACES['mmengine'](np.float32(2)), weight=torch.ones(3),
                            **plain), kind, tmp_path / 'good.pth')
        loaded = load_plain(path)
        assert loaded['message_hub']['log_scalars']['loss'].mean() == 1
        assert loaded['meta']['x'] == 2 and loaded['weight'].sum() == 3
        assert plain.items() <= loaded.items()


def test_a_class_cannot_be_changed(tmp_path, old_pytorch):
    """State for a class: it would change every later object."""
    evil = (b'\x80\x02cmmengine.logging.history_buffer\nHistoryBuffer\n'
            b'N}X\x04\x00\x00\x00meanX\x01\x00\x00\x00xs\x86b.')
    with zipfile.ZipFile(tmp_path / 'evil.pth', 'w') as archive:
        archive.writestr('evil/data.pkl', evil)
        archive.writestr('evil/version', '3')
    with pytest.raises(CheckpointError, match='evil.pth'):
        load_plain(tmp_path / 'evil.pth')
    assert callable(HistoryBuffer.mean)


def test_programs_of_torchscript(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), tmp_path / 'program.pth')
    with pytest.raises(CheckpointError, match='TorchScript'):
        load_plain(tmp_path / 'program.pth')
