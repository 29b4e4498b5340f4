import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='SwiftFormer', arch=dict(embed_dims=[8, 8, 16, 16],
                                                depths=[1, 1, 1, 1])),
    head=dict(type='DistilledClsHead', num_classes=5, in_channels=16))
train_dataloader = test_dataloader = dict(dataset=dict())
"""
SMALL = ['--shape', '64x96']


@pytest.fixture
def fuse(tool, capsys):
    """Run the tool; returns the lines it prints."""
    def run(*args):
        tool('deployment/fuse')([*args])
        return capsys.readouterr().out.splitlines()
    return run


def test_models_of_other_libraries(fuse):
    resnet, preact = fuse('timm/resnet18', 'resnetv2_50', *SMALL)
    assert resnet.startswith(
        'timm/resnet18: 0 modules converted, 20 batch norms folded, no norms left; '
        '11.690 M parameters before, 11.685 M after; deviation ')
    assert preact.startswith('resnetv2_50: 0 modules converted, 32 batch norms folded, '
                             '17 BatchNormAct2d left; ')


def test_checkpoint(fuse, fails, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'swift.py').write_text(CONFIG)
    model = MODELS.build(Config.fromfile('swift.py').model)
    with torch.no_grad():
        model.head.fc.weight.fill_(torch.nan)
    torch.save(dict(state_dict=model.state_dict()), 'model.pth')
    line, = fuse('swift.py', *SMALL)
    assert 'swift: 5 modules converted, 14 batch norms folded, no norms left; ' in line
    main = tool('deployment/fuse')
    assert 'ImageClassifier returns NaN or infinity for this image' in fails(
        main, 'swift.py', *SMALL, '--checkpoint', 'model.pth')
    assert 'none.pth does not exist' in fails(
        main, 'swift.py', *SMALL, '--checkpoint', 'none.pth')


def test_random_weights_of_a_model_that_would_overflow(fuse):
    line, = fuse('reduceformer_b3', *SMALL)
    assert 0 < float(line.split('deviation')[1]) < 1e-3


def test_two_stage_detector(fuse):
    line, = fuse('swiftformer_xs_maskrcnn_1x', *SMALL)
    assert '16 modules converted, 25 batch norms folded, 4 BatchNorm2d left; ' in line


def test_errors(tool, fails, capsys):
    main = tool('deployment/fuse')
    assert 'there is no model' in fails(main, 'resnet5')
    assert 'image of 20 x 20 pixels: ValueError: SwiftFormer has stride 32' in fails(
        main, 'swiftformer_xs', '--shape', '20')
    for args in (['a.py', 'b.py', '--checkpoint', 'c.pth'], ['a.py', '--shape', '0']):
        with pytest.raises(SystemExit):
            main(args)
    assert "argument --shape: '0' is" in capsys.readouterr().err
