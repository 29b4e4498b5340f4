"""Our classifiers in MMPretrain's hub."""
import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmpretrain.apis import ModelHub

from mm_efficient import hub
from mm_efficient.files import configs_folder


def test_look_ups_find_ours_beside_theirs():
    ours = mmpretrain.list_models('soft*')
    assert {'soft-tiny_8xb128_in1k', 'soft-small_8xb128_in1k'} <= set(ours)
    assert mmpretrain.list_models('resnet50*')
    assert not mmpretrain.list_models('mask-rcnn*')  # not for MMPretrain to build


def test_registering_again_changes_nothing():
    before = mmpretrain.list_models()
    hub.register_classifiers()
    assert mmpretrain.list_models() == before


def test_every_entry_has_the_config_it_names():
    for name in mmpretrain.list_models('*former*'):
        if ModelHub._models_dict[name].filepath.startswith(str(configs_folder())):
            assert Config.fromfile(ModelHub._models_dict[name].config).model
    files = {entry.config for entry in ModelHub._models_dict.values()}
    for path in (configs_folder() / 'cls').glob('*.py'):
        assert str(path) in files, path


def test_get_model_builds_and_classifies():
    name = next(n for n in mmpretrain.list_models('swiftformer-xs'))
    model = mmpretrain.get_model(name, head=dict(num_classes=7))
    assert type(model.backbone).__name__ == 'SwiftFormer'
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 64)).shape == (1, 7)


def test_metafile_is_read_at_the_first_look_up_and_once(monkeypatch):
    """Parsing it takes long beside the rest of the registration."""
    calls = []
    monkeypatch.setattr(ModelHub, hub.LISTING, lambda: calls.append('theirs'))
    monkeypatch.setattr(hub, '_register_metafile', lambda: calls.append('ours'))
    hub.register_classifiers()
    assert calls == []
    getattr(ModelHub, hub.LISTING)()
    getattr(ModelHub, hub.LISTING)()
    assert calls == ['theirs', 'ours', 'theirs']


def test_copy_without_configs_leaves_the_hub_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, 'configs_folder', lambda: tmp_path / 'configs')
    before = dict(ModelHub._models_dict)
    hub._register_metafile()
    assert ModelHub._models_dict == before


def test_unknown_releases_of_mmpretrain_are_registered_with_at_once(monkeypatch):
    calls = []
    monkeypatch.setattr(hub, 'LISTING', 'not_there')
    monkeypatch.setattr(hub, '_register_metafile', lambda: calls.append(1))
    hub.register_classifiers()
    assert calls == [1]


@pytest.mark.parametrize('name', ['soft-tiny_8xb128_in1k'])
def test_metainfo_tells_the_source(name):
    entry = ModelHub.get(name)
    assert entry.in_collection == 'SOFT' and entry.config.model.backbone.arch == 'tiny'
