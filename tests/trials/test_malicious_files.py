"""Malicious files at every entry point: nothing runs, each is one clear line."""
import contextlib
import io
import random
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mm_efficient.runs import mini

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / 'tests' / 'weights'))
sys.path.append(str(ROOT / 'tests' / 'tools'))
from test_unpickling import HARM, PLACES, payloads, written  # noqa: E402

CLS = str(ROOT / 'configs/cls/soft_tiny_300e.py')
DISTILLED = str(ROOT / 'configs/cls/swiftformer_xs_300e.py')
INIT = 'model.backbone.init_cfg.'
TRAIN = ['--mini', '--work-dir', 'work']


def options(*pairs):
    return [*TRAIN, '--cfg-options', *(f'{key}={value}' for key, value in pairs)]


# Tool and arguments, given the file
ENTRIES = dict(
    resume=lambda file: ('train', [CLS, *TRAIN, '--resume', file]),
    auto_resume=lambda file: ('train', [CLS, '--mini', '--work-dir', 'found',
                                        '--auto-resume']),
    load_from=lambda file: ('train', [CLS, *options(('load_from', file))]),
    pretrained=lambda file: ('train', [CLS, *TRAIN, '--pretrained', file]),
    init_cfg=lambda file: ('train', [CLS, *options(
        (INIT + 'type', 'Pretrained'), (INIT + 'checkpoint', file))]),
    published=lambda file: ('train', [CLS, *options(
        (INIT + 'type', 'Pretrained'), (INIT + 'checkpoint', f'published://{file}'))]),
    teacher=lambda file: ('train', [DISTILLED, *options(
        ('model.teacher.type', 'TimmClassifier'),
        ('model.teacher.model_name', 'test_resnet'),
        ('model.teacher.checkpoint', file))]),
    test=lambda file: ('test', [CLS, file, *TRAIN]),
    infer=lambda file: ('infer', ['a.jpg', CLS, file, '--out-dir', 'out']),
    convert=lambda file: ('model_converters/convert', [file, 'out.pth']),
    export=lambda file: ('deployment/export', [CLS, file, '--out', 'out.onnx']),
    fuse=lambda file: ('deployment/fuse', [CLS, file, 'out.pth']),
    attention_maps=lambda file: ('visualization/attention_maps', [
        'a.jpg', CLS, '--checkpoint', file]),
    feature_maps=lambda file: ('visualization/feature_maps', [
        'a.jpg', CLS, '--checkpoint', file]))


@cache
def load_main(name):
    from importlib.util import module_from_spec, spec_from_file_location
    spec = spec_from_file_location(name.replace('/', '_'), ROOT / f'tools/{name}.py')
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def malicious(kind, payload, place, path):
    if kind == 'numpy':
        np.save(path.with_suffix('.npy'), np.array([PLACES[place](payload)], object))
        return path.with_suffix('.npy').rename(path)
    return written(PLACES[place](payload), kind, path)


def outcome(main, arguments):
    """What a tool says in the end."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            main(arguments)
    except SystemExit as stop:
        return str(stop.code)
    except Exception as error:
        return f'Traceback: {type(error).__name__}: {error}'
    return 'no error'


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new('RGB', (64, 64)).save('a.jpg')
    generate = mini.generate_dataset
    monkeypatch.setattr(mini, 'generate_dataset',
                        lambda name: generate(name, num_train=4, num_val=2))
    (tmp_path / 'found').mkdir()
    return tmp_path


def attack(folder, files):
    """Give files to every entry point; count what was tried, clear and executed."""
    tried = executed = 0
    unclear = []
    for file in files:
        for entry, make in ENTRIES.items():
            link = folder / 'found' / 'epoch_1.pth'
            link.unlink(missing_ok=True)
            link.hardlink_to(file)
            tool, arguments = make(str(file))
            said = outcome(load_main(tool), arguments)
            tried += 1
            name = link.name if entry == 'auto_resume' else file.name
            if not said.startswith('error: ') or '\n' in said or name not in said:
                unclear.append(f'{entry} {file.name}: {said[:300]}')
            executed += Path(HARM).exists()
            Path(HARM).unlink(missing_ok=True)
    return tried, unclear, executed


@pytest.mark.trials
@pytest.mark.parametrize('kind', ['zip', 'legacy', 'pickle', 'tar', 'numpy'])
def test_eight_files_at_every_entry_point(folder, kind, seed, count):
    """With five kinds 40 files, of random payloads in every place."""
    random.seed(f'{kind} {seed}')
    choices = [(place, *random.choice([*payloads()]))
               for place in (*PLACES, random.choice([*PLACES]))]
    files = [malicious(kind, payload, place, folder / f'{i}_{name}_{place}.pth')
             for i, (place, name, payload) in enumerate(choices)]
    tried, unclear, executed = attack(folder, files)
    count(f'malicious files, {kind}: {len(files)} files at {len(ENTRIES)} entry points',
          tried=tried, clear=tried - len(unclear), executed=executed)
    assert executed == 0 and not unclear


def test_one_file_at_every_entry_point(folder):
    payload = dict(payloads())['open']
    file = malicious('zip', payload, 'mmengine', folder / 'evil.pth')
    tried, unclear, executed = attack(folder, [file])
    assert tried == len(ENTRIES) and executed == 0 and not unclear
