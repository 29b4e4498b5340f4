"""Our classifiers in MMPretrain's hub."""
import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmpretrain.apis import ModelHub

from mm_efficient import hub as our_hub
from mm_efficient.files import configs_folder
from mm_efficient.weights import CheckpointError, convert_checkpoint


def test_ours_are_found_next_to_theirs():
    ours = mmpretrain.list_models('soft*')
    assert {'soft-tiny_8xb128_in1k', 'soft-small_8xb128_in1k'} <= set(ours)
    assert mmpretrain.list_models('resnet50*')
    assert not mmpretrain.list_models('mask-rcnn*')  # MMPretrain could not build them


def test_registering_again_changes_nothing():
    before = mmpretrain.list_models()
    our_hub.register_classifiers()
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


def test_published_weights_are_loaded(hub, timm_file):
    hub.files['timm/swiftformer_xs.dist_in1k'] = timm_file
    name, = mmpretrain.list_models('swiftformer-xs*')
    for model in (mmpretrain.get_model(name, pretrained=True),
                  mmpretrain.ImageClassificationInferencer(name).model):
        assert all((value == 2).all() for value in model.state_dict().values())


def test_weights_in_checkpoints_are_loaded(checkpoints, published):
    conversion = convert_checkpoint(published())
    torch.save(conversion.checkpoint, checkpoints / 'soft_tiny.pth')
    model = mmpretrain.get_model('soft-tiny_8xb128_in1k', pretrained=True)
    for key, value in model.state_dict().items():
        assert value.equal(conversion.state_dict[key]), key


@pytest.mark.parametrize('name, message', [
    ('soft-tiny_8xb128_in1k', 'downloaded in a browser: get SOFT_Tiny from'),
    ('soft-small_8xb128_in1k', 'published no weights of soft_small'),
    ('ecoformer-pvt-b0-softmax_8xb32-100e_in1k', 'nor weights known by this name')])
def test_without_weights_nothing_is_built_from_random_ones(name, message):
    with pytest.raises(CheckpointError, match=message):
        mmpretrain.get_model(name, pretrained=True)
    with pytest.raises(CheckpointError, match=message):
        mmpretrain.ImageClassificationInferencer(name)


def test_copy_without_configs_leaves_the_hub_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(our_hub, 'configs_folder', lambda: tmp_path / 'configs')
    before = dict(ModelHub._models_dict)
    our_hub.register_classifiers.__wrapped__()
    assert ModelHub._models_dict == before


def test_metainfo_names_the_collection():
    entry = ModelHub.get('soft-tiny_8xb128_in1k')
    assert entry.in_collection == 'SOFT' and entry.config.model.backbone.arch == 'tiny'
