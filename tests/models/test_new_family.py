"""A new family is one folder in models/, its configs, its page and its references.

The toy family of ``toy_family/`` is laid into a copy of the checkout, in which nothing
else is changed, and goes through everything that works for all families.
"""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / 'toy_family'
COPIED = ('mm_efficient', 'configs', 'tools', 'docs', 'tests', 'README.md',
          'pyproject.toml', 'model-index.yml')


@pytest.fixture(scope='module')
def checkout(tmp_path_factory):
    """A copy of the checkout with the toy family in it."""
    folder = tmp_path_factory.mktemp('checkout')
    ignored = shutil.ignore_patterns('__pycache__', '.mim', 'toy_family')
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder / name)
    shutil.copytree(TOY / 'models', folder / 'mm_efficient/models', dirs_exist_ok=True)
    for part in ('configs', 'docs'):
        shutil.copytree(TOY / part, folder / part, dirs_exist_ok=True)
    return folder


def run(checkout, *arguments):
    environment = {**os.environ, 'PYTHONPATH': str(checkout), 'OMP_NUM_THREADS': '1'}
    result = subprocess.run([sys.executable, *map(str, arguments)], cwd=checkout,
                            env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_built_and_listed_in_timm(checkout):
    out = run(checkout, '-c', '''if True:
        import mm_efficient, timm, torch
        from mm_efficient.models import ToyNet
        model = timm.create_model('mm_toynet_small', features_only=True)
        print(type(model.backbone) is ToyNet, model.feature_info.channels())
        print([tuple(y.shape) for y in model(torch.rand(1, 3, 64, 96))])
        print(timm.list_models('mm_toynet*'), mm_efficient.__file__)''')
    assert 'True [8, 16, 32, 64]' in out
    assert '(1, 64, 2, 3)]' in out
    assert "['mm_toynet_small', 'mm_toynet_tiny']" in out
    assert str(checkout) in out


def test_converted(checkout, tmp_path):
    published = tmp_path / 'published.pth'
    run(checkout, '-c', f'''if True:
        import mm_efficient, torch
        from mm_efficient.models import ToyNet
        torch.save({{**{{'toy.' + key: value for key, value in
                      ToyNet('small').state_dict().items()}},
                    'fc.weight': torch.rand(7, 64), 'fc.bias': torch.rand(7)}},
                   {str(published)!r})''')
    out = run(checkout, 'tools/model_converters/convert.py', published,
              tmp_path / 'ours.pth')
    assert 'arch       small' in out and 'configs/cls/toynet_small_300e.py' in out
    assert 'num_classes=7' in out
    assert (tmp_path / 'ours.pth').exists()


def test_counted_and_timed(checkout, tmp_path):
    assert 'toynet_tiny' in run(checkout, 'tools/analysis_tools/get_flops.py',
                                'toynet_tiny')
    file = tmp_path / 'times.json'
    run(checkout, 'tools/analysis_tools/benchmark.py', 'toynet_tiny', 'toynet_small',
        '--shape', '64', '--iterations', '2', '--rounds', '1', '--out', file)
    rows = json.loads(file.read_text())['results']
    assert [row['model'] for row in rows] == ['toynet_tiny', 'toynet_small']
    assert all(row['median_ms'] > 0 for row in rows)


def test_exported(checkout, tmp_path):
    out = run(checkout, 'tools/deployment/export.py', 'configs/cls/toynet_tiny_300e.py',
              '--shape', '64', '--out', tmp_path / 'toynet.onnx')
    assert 'written' in out and (tmp_path / 'toynet.onnx').exists()


def test_trained(checkout, tmp_path):
    out = run(checkout, 'tools/train.py', 'configs/det/toynet_tiny_retinanet_1x.py',
              '--mini', '--work-dir', tmp_path / 'run', '--cfg-options',
              'train_dataloader.dataset.indices=8', 'val_dataloader.dataset.indices=2',
              'train_cfg.max_epochs=1')
    assert 'untrained' in out and list((tmp_path / 'run').glob('*.pth'))


def test_goes_through_contract_and_grid(checkout):
    out = run(checkout, '-m', 'pytest', '-q', '-n0', '-p', 'no:cacheprovider',
              'tests/models/test_contract.py', 'tests/configs', '-k',
              '(ToyNet or toynet or grid or families) and not onnx')
    assert re.search(r'\d+ passed', out)


def test_listed_in_the_model_zoo(checkout):
    run(checkout, 'tools/model_zoo/update_model_zoo.py', '--keep')
    for task in ('cls', 'det', 'seg'):
        assert 'toynet' in (checkout / 'configs' / task / 'metafile.yml').read_text()
    assert '12.3' in (checkout / 'docs/model_zoo.md').read_text()
