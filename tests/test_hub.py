"""Our classifiers in MMPretrain's hub."""
import mmpretrain
import torch
from mmengine.config import Config
from mmpretrain.apis import ModelHub

from mm_efficient import hub
from mm_efficient.files import configs_folder


def test_ours_are_found_next_to_theirs():
    ours = mmpretrain.list_models('soft*')
    assert {'soft-tiny_8xb128_in1k', 'soft-small_8xb128_in1k'} <= set(ours)
    assert mmpretrain.list_models('resnet50*')
    assert not mmpretrain.list_models('mask-rcnn*')  # MMPretrain could not build them


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


def test_copy_without_configs_leaves_the_hub_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(hub, 'configs_folder', lambda: tmp_path / 'configs')
    before = dict(ModelHub._models_dict)
    hub.register_classifiers.__wrapped__()
    assert ModelHub._models_dict == before


def test_metainfo_names_the_collection():
    entry = ModelHub.get('soft-tiny_8xb128_in1k')
    assert entry.in_collection == 'SOFT' and entry.config.model.backbone.arch == 'tiny'
