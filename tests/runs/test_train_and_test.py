"""Training and testing from Python."""
import pickle
from pathlib import Path

import pytest
import torch
from mmengine.config import Config

from mm_efficient import runs
from mm_efficient.errors import ExecutionError, InputError
from mm_efficient.models.soft.backbone import SOFT
from mm_efficient.runs.inference import build_inferencer
from mm_efficient.runs.mini import generate_mini_data
from mm_efficient.runs.models import load_model
from mm_efficient.weights import loading, reading

CLS = 'soft_tiny_300e.py'
SHORT = {'train_cfg.max_epochs': 1, 'train_dataloader.batch_size': 2,
         'log_level': 'ERROR'}


def test_train_then_test(tiny, shallow):
    """By name of the config, then with the config itself."""
    runner = runs.train(CLS, work_dir='work', cfg_options=SHORT, mini=True)
    assert isinstance(runner.model, torch.nn.Module)
    assert Path(runner.work_dir) == tiny / 'work'
    checkpoint = tiny / 'work/epoch_1.pth'
    config = Config.fromfile(runs.load_config(CLS).filename)
    metrics = runs.test(config, checkpoint, work_dir=tiny / 'tested', out='all.pkl',
                        cfg_options={'log_level': 'ERROR'}, mini=True)
    predictions = pickle.loads(Path('all.pkl').read_bytes())
    right = [int(each['pred_label']) == int(each['gt_label']) for each in predictions]
    assert len(right) == 2
    assert metrics == {'accuracy/top1': pytest.approx(100 * sum(right) / 2)}
    assert list((tiny / 'tested').rglob('*.log'))


def test_nothing_is_written_on_errors(tiny):
    for wrong in (dict(pretrained='none.pth'), dict(num_classes=3),
                  dict(data_root='nowhere'), dict(resume='none.pth')):
        with pytest.raises(InputError):
            runs.train(CLS, work_dir='work', mini=True, **wrong)
    with pytest.raises(InputError):
        runs.test(CLS, 'none.pth', work_dir='work', mini=True)
    assert not Path('work').exists()


@pytest.mark.parametrize('key, value', [
    ('optim_wrapper.paramwise_cfg', 5),
    ('param_scheduler', [dict(type='LinearLR', begin=9, end=5)])])
def test_parts_that_cannot_be_built(tiny, shallow, key, value):
    message = rf'{key.split(".")[0]} of the config cannot be built: \w+: '
    with pytest.raises(ExecutionError, match=message):
        runs.train(CLS, work_dir='work', cfg_options={**SHORT, key: value}, mini=True)
    assert not Path('work').exists()


def counted(monkeypatch, module, name):
    calls, function = [], getattr(module, name)
    monkeypatch.setattr(module, name, lambda *args, **kwargs: (
        calls.append(args), function(*args, **kwargs))[1])
    return calls


@pytest.mark.parametrize('ours', [True, False])
def test_pretrained_weights_are_loaded(tiny, monkeypatch, published, ours):
    """What the check has converted is not converted again."""
    tensors = published('soft_tiny') if not ours else {
        f'backbone.{key}': value + 1
        for key, value in SOFT('tiny').state_dict().items()}
    torch.save(tensors, 'weights.pth')
    conversions = counted(monkeypatch, reading, 'convert_checkpoint')
    runner = runs.build_runner(runs.prepare_training(
        CLS, pretrained='weights.pth', work_dir='work', cfg_options=SHORT,
        mini=True))
    runner.model.init_weights()
    assert len(conversions) == 1 and not loading._kept
    expected = tensors if ours else reading.convert_file('weights.pth').state_dict
    for key, value in runner.model.backbone.state_dict().items():
        assert torch.equal(value, expected[f'backbone.{key}'])


@pytest.mark.parametrize('name', ['swiftformer_xs_maskrcnn_1x.py',
                                  'swiftformer_xs_fpn_40k.py'])
def test_published_weights_are_for_training_only(tiny, monkeypatch, name):
    """A checkpoint has its own: testing and inference fetch nothing."""
    monkeypatch.setattr(reading, 'fetch', lambda address: pytest.fail(address))
    monkeypatch.setattr(loading, '_read', lambda *args: pytest.fail(str(args)))
    cfg = runs.load_config(name, mini=True)
    cfg.model.backbone.init_cfg = runs.load_config(name).model.backbone.init_cfg
    model = load_model(runs.load_config(name, mini=True))
    torch.save({'state_dict': model.state_dict()}, 'trained.pth')
    load_model(cfg, 'trained.pth')
    build_inferencer(cfg, 'trained.pth', 'cpu')
    generate_mini_data(cfg.default_scope)
    assert runs.test(cfg, 'trained.pth', work_dir='tested',
                     cfg_options={'log_level': 'ERROR'})


def test_a_file_that_changes_is_read_again(tiny, published):
    torch.save(published('soft_tiny', seed=0), 'weights.pth')
    source, backbone = 'published://weights.pth', SOFT('tiny')
    first = loading.match_pretrained(backbone, source, keep=True)
    torch.save(published('soft_tiny', seed=1), 'weights.pth')
    second = loading.match_pretrained(backbone, source)
    name = 'stages.0.blocks.0.mlp.fc1.weight'
    assert not torch.equal(first[name], second[name])
    loading._kept.clear()


def test_the_model_is_built_once_for_the_run(tiny, monkeypatch):
    """Checks build it on the meta device: no weights, no initialisation."""
    devices = []
    init = SOFT.__init__

    def record(self, *args, **kwargs):
        devices.append(torch.empty(0).device.type)
        init(self, *args, **kwargs)

    monkeypatch.setattr(SOFT, '__init__', record)
    runner = runs.build_runner(runs.prepare_training(
        CLS, work_dir='work', cfg_options=SHORT, mini=True))
    assert devices == ['meta', 'meta', 'cpu']  # checked: the backbone, the model
    torch.save({'state_dict': runner.model.state_dict()}, 'weights.pth')
    devices.clear()
    runs.prepare_testing(CLS, 'weights.pth', mini=True)
    assert set(devices) == {'meta'}


def test_a_model_that_does_not_build_on_meta():
    """MMPretrain's Swin reads the values of a tensor that it makes."""
    from mmengine.registry import DefaultScope

    from mm_efficient.runs.model_checks import build_on_meta
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        models = [build_on_meta(dict(type=kind, arch='tiny'))
                  for kind in ('mmpretrain.SwinTransformer', 'SOFT')]
    assert [next(model.parameters()).device.type for model in models] == ['cpu', 'meta']
