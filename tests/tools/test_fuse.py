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
SMALL = ['--size', '64x96']


@pytest.fixture
def fuse(tool, capsys):
    """Run the tool; returns its rows and its output."""
    def run(*args):
        tool('deployment/fuse')([*args])
        text = capsys.readouterr().out
        rows = [[cell.strip() for cell in line.split('│')[1:-1]]
                for line in text.splitlines()]
        return [row for row in rows if row], ' '.join(text.split())
    return run


def test_tables(fuse):
    rows, text = fuse('timm/resnet18', 'resnetv2_50', *SMALL)
    assert rows[0] == ['bn1', 'BatchNorm2d', 'conv1']
    assert rows[20] == ['stages.0.blocks.0.norm2', 'BatchNormAct2d',
                        'stages.0.blocks.0.conv1']
    assert rows[-1] == ['norm', 'BatchNormAct2d',
                        'before: no convolution; behind: no convolution']
    assert ('0 modules converted, 20 batch norms folded; 11.690 M parameters before, '
            '11.685 M after; deviation') in text


def test_checkpoint(fuse, fails, tool, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'swift.py').write_text(CONFIG)
    model = MODELS.build(Config.fromfile('swift.py').model)
    with torch.no_grad():
        model.head.fc.weight.fill_(torch.nan)
    torch.save(dict(state_dict=model.state_dict()), 'model.pth')
    rows, _ = fuse('swift.py', *SMALL)
    assert ['head', 'DistilledClsHead', 'switch_to_deploy()'] in rows
    main = tool('deployment/fuse')
    assert 'ImageClassifier gives NaN or infinity for this image' in fails(
        main, 'swift.py', *SMALL, '--checkpoint', 'model.pth')
    assert 'none.pth does not exist' in fails(
        main, 'swift.py', *SMALL, '--checkpoint', 'none.pth')


def test_random_weights_of_a_model_that_would_overflow(fuse):
    _, text = fuse('reduceformer_b3', *SMALL)
    assert 0 < float(text.split('deviation')[1].split()[0]) < 1e-3


def test_detector_of_two_stages(fuse):
    rows, _ = fuse('swiftformer_xs_maskrcnn_1x', *SMALL)
    assert ['backbone.output_norms.0', 'BatchNorm2d', 'neck.lateral_convs.0.conv'] in (
        rows)


def test_errors(tool, fails, capsys):
    main = tool('deployment/fuse')
    assert 'there is no model' in fails(main, 'resnet5')
    assert 'image of 20 x 20 pixels: ValueError: SwiftFormer has stride 32' in fails(
        main, 'swiftformer_xs', '--size', '20')
    for args in (['a.py', 'b.py', '--checkpoint', 'c.pth'], ['a.py', '--size', '0']):
        with pytest.raises(SystemExit):
            main(args)
    assert "'0' is no size; expected 224" in capsys.readouterr().err
