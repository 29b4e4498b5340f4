"""--compile and --channels-last of training and testing."""
import pytest
from mmengine.config import Config
from mmengine.registry import MODELS
from torch import nn

from mm_efficient import runs
from mm_efficient.engine import ChannelsLastBackboneHook, CompileBackboneHook
from mm_efficient.errors import InputError
from mm_efficient.runs import devices
from mm_efficient.runs.model_checks import check_model
from mm_efficient.runs.settings import speed_up_backbone

ARCH = dict(_delete_=True, embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1])


def test_train_and_test(tiny, monkeypatch):
    """Checkpoints have the usual names, and serve with and without the options."""
    monkeypatch.setattr(  # the default one compiles for minutes
        CompileBackboneHook.__init__, '__defaults__', ('eager', None, True))
    options = {'train_cfg.max_epochs': 1, 'train_dataloader.batch_size': 2,
               'log_level': 'ERROR', 'model.backbone.arch': ARCH,
               'model.head.in_channels': 16}
    faster = dict(compile_backbone=True, channels_last=True)
    settings = dict(cfg_options=options, mini=True, work_dir='work')
    name, checkpoint = 'swiftformer_xs_300e.py', tiny / 'work/epoch_1.pth'
    runner = runs.train(name, **settings, **faster)
    assert runner.model.backbone._compiled_call_impl is not None
    assert runner.model.backbone._forward_hooks
    metrics = runs.test(name, checkpoint, **settings)
    assert runs.test(name, checkpoint, **settings, **faster) == metrics


class OwnBackbone(nn.Module):
    """A model whose config has no backbone."""

    def __init__(self, backbone=True):
        super().__init__()
        if backbone:
            self.backbone = nn.Conv2d(3, 4, 1)


def test_models_that_cannot():
    cfg = Config(dict(model=dict(backbone=dict(type='SOFT')), compile=True))
    with pytest.raises(InputError, match='compiles the whole model'):
        speed_up_backbone(cfg, True, True)
    MODELS.register_module(module=OwnBackbone, force=True)
    cfg = Config(dict(model=dict(type='OwnBackbone'), default_scope='mmengine'))
    speed_up_backbone(cfg, True, True)
    check_model(cfg)
    cfg.model.backbone = False
    with pytest.raises(InputError, match='expects a model with a backbone, got OwnB'):
        check_model(cfg)


def test_hooks_of_the_config(monkeypatch):
    """They may have settings, and are not given twice."""
    monkeypatch.setenv('CXX', 'no_such_compiler')  # which eager does not need
    hooks = [dict(type='CompileBackboneHook', backend='eager'),
             dict(type=ChannelsLastBackboneHook)]
    cfg = Config(dict(model=dict(backbone=dict(type='SOFT')), custom_hooks=hooks))
    speed_up_backbone(cfg, True, True)
    assert cfg.custom_hooks == hooks


def test_graphs_that_change_in_every_iteration(tiny):
    with pytest.raises(InputError, match='DropPathProgressHook'):
        runs.train('lowformer_b0_300e.py', mini=True, work_dir='work',
                   compile_backbone=True)
    assert not (tiny / 'work').exists()


def test_compilers_are_looked_for(monkeypatch):
    cfg = Config(dict(model=dict(detector=dict(backbone=dict(type='SOFT')))))
    monkeypatch.setenv('CXX', 'no_such_compiler')
    with pytest.raises(InputError, match='no_such_compiler is missing'):
        speed_up_backbone(cfg, True, False)
    monkeypatch.setattr(devices, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(devices.importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(InputError, match='package triton'):
        speed_up_backbone(cfg, True, False)
    monkeypatch.undo()
    monkeypatch.setattr(devices.shutil, 'which', lambda name: name)
    speed_up_backbone(cfg, True, True)
    assert [hook['type'] for hook in cfg.custom_hooks] == [
        'ChannelsLastBackboneHook', 'CompileBackboneHook']
