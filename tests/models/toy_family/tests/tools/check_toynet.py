"""What works for all families, for the toy: run in a checkout that has it."""
import json
from pathlib import Path

import pytest
import timm
import torch

import mm_efficient
from mm_efficient.models import ToyNet

ROOT = Path(__file__).parents[2]


def test_this_checkout_is_tested():
    assert Path(mm_efficient.__file__).is_relative_to(ROOT)


def test_built_and_listed_in_timm():
    assert timm.list_models('mm_toynet*') == ['mm_toynet_small', 'mm_toynet_tiny']
    model = timm.create_model('mm_toynet_small', features_only=True)
    assert type(model.backbone) is ToyNet
    assert model.feature_info.channels() == [8, 16, 32, 64]
    assert model(torch.rand(1, 3, 64, 96))[-1].shape == (1, 64, 2, 3)


def test_converted(tool, tmp_path, capsys):
    tensors = {f'toy.{key}': value
               for key, value in ToyNet('small').state_dict().items()}
    torch.save({**tensors, 'fc.weight': torch.rand(7, 64), 'fc.bias': torch.rand(7)},
               tmp_path / 'published.pth')
    tool('model_converters/convert')([str(tmp_path / 'published.pth'),
                                      str(tmp_path / 'ours.pth')])
    out = capsys.readouterr().out
    assert 'arch       small' in out and 'configs/cls/toynet_small_300e.py' in out
    assert 'num_classes=7' in out
    assert (tmp_path / 'ours.pth').exists()


def test_counted(tool, capsys):
    tool('analysis_tools/get_flops')(['toynet_tiny'])
    assert 'toynet_tiny' in capsys.readouterr().out


def test_timed(tool, tmp_path):
    file = tmp_path / 'times.json'
    tool('analysis_tools/benchmark')([
        'toynet_tiny', 'toynet_small', '--shape', '64', '--iterations', '2', '--rounds',
        '1', '--out', str(file)])
    rows = json.loads(file.read_text())['results']
    assert [row['model'] for row in rows] == ['toynet_tiny', 'toynet_small']
    assert all(row['median_ms'] > 0 for row in rows)


def test_exported(tool, tmp_path):
    pytest.importorskip('onnxscript')
    file = tmp_path / 'toynet.onnx'
    tool('deployment/export')(['configs/cls/toynet_tiny_300e.py', '--shape', '64',
                               '--out', str(file)])
    assert file.exists()


def test_trained(tiny, train, config):
    train([config('det/toynet_tiny_retinanet_1x.py'), '--mini', '--work-dir', 'run',
           '--cfg-options', 'train_cfg.max_epochs=1'])
    assert (tiny / 'run/epoch_1.pth').exists()


def test_listed_in_the_model_zoo(tool, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools/model_zoo')
    tool('model_zoo/update_model_zoo')(['--keep'])
    for task in ('cls', 'det', 'seg'):
        assert 'toynet' in (ROOT / 'configs' / task / 'metafile.yml').read_text()
    assert '12.3' in (ROOT / 'docs/model_zoo.md').read_text()
