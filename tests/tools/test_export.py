"""tools/deployment/export.py, on real files."""
import json
import re

import cv2
import numpy as np
import pytest
import torch

from mm_efficient.datasets.scenes import draw_scene
from mm_efficient.deploy import load_exported, randomize, sample_images
from mm_efficient.deploy.verification import predict
from mm_efficient.runs.configs import load_config
from mm_efficient.runs.models import load_model

pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

CONFIG = """
_base_ = '{}'
model = dict(
    backbone=dict(_delete_=True, type='SwiftFormer', arch=dict(
        embed_dims=[16, 32, 48, 64], depths=[1, 1, 1, 1])),
    head=dict(in_channels=64, num_classes=5))
"""


FIXED_SIZE = """
_base_ = 'small.py'
model = dict(
    backbone=dict(_delete_=True, type='MlpMixer', img_size=64, arch=dict(
        embed_dims=16, num_layers=1, tokens_mlp_dims=8, channels_mlp_dims=8)),
    neck=dict(type='GlobalAveragePooling', dim=1),
    head=dict(_delete_=True, type='LinearClsHead', num_classes=5, in_channels=16))
"""


@pytest.fixture
def small(config, tmp_path, monkeypatch):
    """Config of a small classifier, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / 'small.py'
    path.write_text(CONFIG.format(config('cls/swiftformer_xs_300e.py')))
    return str(path)


@pytest.fixture
def image_file(tmp_path):
    path = tmp_path / 'image.png'
    image = draw_scene(np.random.default_rng(0), (90, 120)).image
    cv2.imwrite(str(path), image[..., ::-1])
    return str(path)


def test_classifier_on_an_image(tool, small, image_file, tmp_path, capsys):
    import onnx
    tool('deployment/export')([small, '--out', 'out/small.onnx', '--shape', '64x96',
                               '--image', image_file])
    text = ' '.join(capsys.readouterr().out.split())
    found = re.findall(r'compared with PyTorch, (\S+ x 3 x \S+ x \S+): scores (\S+)',
                       text)
    assert [shape for shape, _ in found] == ['2 x 3 x 64 x 96', '1 x 3 x 51 x 121']
    assert all(0 <= float(deviation) < 1e-4 for _, deviation in found)
    assert re.search(r'fused: \d+ modules converted, \d+ batch norms folded', text)
    assert 'Conv' in text and 'written: out/small.onnx' in text
    properties = {each.key: each.value for each in onnx.load(
        tmp_path / 'out/small.onnx').metadata_props}
    assert properties['task'] == 'mmpretrain'
    assert properties['weights'] == 'random' and 'weights: random' in text
    assert json.loads(properties['classes']) == [f'class {i}' for i in range(5)]
    scores, = load_exported('out/small.onnx', 'onnx')(torch.zeros(1, 3, 75, 64))
    assert scores.shape == (1, 5) and scores.sum().item() == pytest.approx(1)
    assert [path.name for path in (tmp_path / 'out').iterdir()] == ['small.onnx']


def test_backbone_as_torchscript(tool, small, tmp_path, capsys):
    tool('deployment/export')([small, '--out', 'small.pt', '--shape', '64', '--static',
                               '--backbone', '--no-fuse', '--format', 'torchscript'])
    text = ' '.join(capsys.readouterr().out.split())
    assert '1 x 3 x 64 x 64: feature map 0' in text and 'fused' not in text
    run = load_exported('small.pt', 'torchscript')
    assert run(torch.zeros(1, 3, 64, 64))[0].shape == (1, 64, 2, 2)


def test_weights_that_the_config_names_are_kept(tool, small, config, capsys):
    model, images = load_model(load_config(small)), sample_images([], (64, 64))[0]
    randomize(model, lambda model, x: model((x - 128) / 64), [images])
    for parameter in model.head.parameters():
        parameter.data *= 3
    torch.save(dict(state_dict=model.state_dict()), 'trained.pth')
    tool('deployment/export')([
        small, '--out', 'small.pt', '--shape', '64', '--cfg-options',
        'model.init_cfg.type=Pretrained', 'model.init_cfg.checkpoint=trained.pth'])
    assert 'weights: init_cfg' in capsys.readouterr().out
    scores, = load_exported('small.pt', 'torchscript')(images)
    expected = torch.stack([sample.pred_score for sample in predict(model, images)])
    torch.testing.assert_close(scores, expected, rtol=1e-3, atol=1e-6)
    assert expected.std() > 0.01


def test_models_that_cannot_be_built_or_run(tool, small, fails, tmp_path):
    main = tool('deployment/export')
    args = [small, '--out', 'a.pt', '--shape', '64', '--cfg-options']
    assert 'cannot be built: KeyError' in fails(main, *args, 'model.head.type=Foo')
    assert 'init_cfg of the config names cannot be loaded' in fails(
        main, *args, 'model.head.init_cfg.type=Pretrained',
        'model.head.init_cfg.checkpoint=none.pth')
    (tmp_path / 'fixed.py').write_text(FIXED_SIZE)
    args = ['fixed.py', '--out', 'a.pt', '--shape', '64']
    assert 'cannot run images of 2 x 3 x 64 x 64, 1 x 3 x 51 x 81: AssertionError' in (
        fails(main, *args))
    assert not (tmp_path / 'a.pt').exists()
    main([*args, '--static'])
    assert (tmp_path / 'a.pt').exists()


def test_wrong_arguments(tool, small, fails, tmp_path, capsys):
    main = tool('deployment/export')
    message = fails(main, small, '--out', 'small.caffe')
    assert 'has to end with .onnx or .pt or .pt2 or .mlpackage' in message
    assert 'format coreml must end with .mlpackage' in fails(
        main, small, '--out', 'small.pt', '--format', 'coreml')
    assert 'a.pth does not exist' in fails(main, small, 'a.pth', '--out', 'a.pt')
    assert 'Checkpoint  does not exist' in fails(main, small, '', '--out', 'a.pt')
    assert 'must end with .onnx' in fails(main, small, '--out', 'a.ONNX')
    for opset in ('0', '99'):
        assert f'there is no opset {opset}' in fails(
            main, small, '--out', 'a.onnx', '--opset', opset)
    assert 'none.py does not exist' in fails(main, 'none.py', '--out', 'a.pt')
    message = fails(main, small, '--out', 'a.pt', '--fp16')
    assert 'available in format coreml only' in message
    message = fails(main, small, '--out', 'a.pt', '--image', 'none.jpg')
    assert 'none.jpg does not exist' in message
    (tmp_path / 'best.pt').write_bytes(b'a checkpoint')
    message = fails(main, small, 'best.pt', '--out', tmp_path / 'best.pt')
    assert 'best.pt is read and would be overwritten' in message
    (tmp_path / 'best.pt').unlink()
    message = fails(main, small, '--out', 'a.pt', '--cfg-options', 'a')
    assert 'expected KEY=VALUE' in message
    with pytest.raises(SystemExit):
        main([small, '--out', 'a.pt', '--shape', '16'])
    assert 'sides of at least 32, got 16x16' in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ['small.py']
