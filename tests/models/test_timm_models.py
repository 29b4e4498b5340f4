"""timm's interface to our backbones."""
import pytest
import timm
import torch

from mm_efficient.files import configs_folder
from mm_efficient.models import base
from mm_efficient.weights.conversion import CheckpointError

SMALL = ['mm_soft_tiny', 'mm_swiftformer_xs', 'mm_lowformer_b0', 'mm_reduceformer_b1']


def create(name, **arguments):
    return timm.create_model(name, features_only=True, **arguments)


def test_every_variant_is_listed():
    names = set(timm.list_models('mm_*'))
    variants = {path.stem.removesuffix('_upernet_160k')
                for path in (configs_folder() / 'seg').glob('*_upernet_160k.py')}
    assert names == {f'mm_{variant}' for variant in variants}
    assert set(timm.list_models(module='timm_models')) == names


@pytest.mark.parametrize('name', SMALL)
def test_feature_info_tells_what_comes_out(name):
    model = create(name, out_indices=(0, 2, 3)).eval()
    with torch.no_grad():
        outputs = model(torch.rand(1, 3, 64, 96))
    assert isinstance(outputs, list)
    assert [x.shape[1] for x in outputs] == model.feature_info.channels()
    assert model.feature_info.reduction() == [4, 16, 32]
    for x, reduction in zip(outputs, model.feature_info.reduction()):
        assert tuple(x.shape[2:]) == (64 // reduction, 96 // reduction)
    modules = dict(model.named_modules())
    assert all(part in modules for part in model.feature_info.module_name())


@pytest.mark.parametrize(('out_indices', 'stages'), [
    (None, (0, 1, 2, 3)), (2, (2, 3)), ((-3, -1), (1, 3)), ([1], (1, )),
    ((3, 0), (3, 0)), ((-1, 1, -1), (3, 1, 3))])
def test_indices_as_timm_counts_them(out_indices, stages):
    model = create('mm_swiftformer_xs', out_indices=out_indices).eval()
    assert model.backbone.out_indices == tuple(sorted({*stages}))
    assert model.feature_info.reduction() == [4 * 2**i for i in stages]
    with torch.no_grad():
        widths = [x.shape[1] for x in model(torch.rand(1, 3, 32, 32))]
    assert widths == model.feature_info.channels()


def test_what_timm_describes():
    model = create('mm_lowformer_b0', in_chans=1)
    assert model.default_cfg is model.pretrained_cfg
    assert model.output_fmt == 'NCHW' and model.in_chans == 1
    assert model.pretrained_cfg['first_conv'] == 'backbone.stem.0.0'
    assert not {'classifier', 'num_classes'} & set(model.pretrained_cfg)
    data = timm.data.resolve_model_data_config(model)
    assert (data['crop_pct'], data['interpolation']) == (0.95, 'bicubic')


def test_keywords_of_classifiers_have_no_effect():
    model = create('mm_lowformer_b0', num_classes=7, global_pool='avg', drop_rate=0.5,
                   pretrained_strict=True, feature_cls='list', cache_dir='nowhere',
                   dtype=torch.bfloat16, device='meta')
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert all(p.is_meta for p in model.parameters())
    assert not any(name.startswith('head') for name, _ in model.named_modules())


@pytest.mark.parametrize('name', SMALL)
def test_checkpointing_is_switched(name, monkeypatch):
    calls = []
    monkeypatch.setattr(base, 'checkpoint', lambda block, x, **options: (
        calls.append(block), block(x))[1])
    model = create(name)
    blocks = sum(len(stage.blocks) for stage in model.backbone.stages)
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model(torch.rand(2, 3, 64, 64))
        assert len(calls) >= enable * blocks and bool(calls) == enable


def test_initialisation_is_the_published_one_and_silent(capfd):
    model = create('mm_swiftformer_xs')
    linear = model.backbone.stages[0].blocks[0].mlp.fc1
    assert linear.weight.std().item() == pytest.approx(0.02, rel=0.1)
    assert 'init_weights' not in ''.join(capfd.readouterr())


def test_settings_reach_the_backbone():
    model = create('mm_soft_tiny_norm', in_chans=1, out_indices=[0])
    assert model.backbone.normalized and model.backbone.pretrain_size == 224
    assert model(torch.rand(1, 1, 32, 32))[0].shape == (1, 64, 8, 8)


def test_weights_of_a_classifier(tmp_path):
    source = create('mm_swiftformer_xs')
    weights = {f'backbone.{key}': value
               for key, value in source.backbone.state_dict().items()
               if not key.startswith('output_norms')}  # fresh in dense prediction
    file = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict={**weights, 'head.fc.weight': torch.zeros(2, 2)}), file)
    for arguments in (
            dict(checkpoint_path=str(file)),
            dict(pretrained=True, pretrained_cfg_overlay=dict(file=str(file)))):
        model = create('mm_swiftformer_xs', out_indices=(0, 1), **arguments)
        for key, value in model.backbone.state_dict().items():
            if f'backbone.{key}' in weights:
                torch.testing.assert_close(value, weights[f'backbone.{key}'])
    with pytest.raises(CheckpointError, match='of another shape'):
        create('mm_swiftformer_s', checkpoint_path=str(file))


def test_own_state_dict_comes_back():
    source, target = create('mm_lowformer_b0'), create('mm_lowformer_b0')
    assert not target.load_state_dict(source.state_dict()).missing_keys
    torch.testing.assert_close(target.state_dict(), source.state_dict())


@pytest.mark.parametrize('channels', [3, 1])
def test_weights_known_by_name_are_fetched(hub, timm_file, channels):
    hub.files['timm/swiftformer_xs.dist_in1k'] = timm_file
    model = create('mm_swiftformer_xs', pretrained=True, in_chans=channels)
    for key, value in model.backbone.state_dict().items():
        if not key.startswith('output_norms'):
            adapted = key == 'stem.0.weight' and channels == 1
            assert (value == (6 if adapted else 2)).all(), key


@pytest.mark.parametrize(('arguments', 'error', 'message'), [
    (dict(out_indices=5), ValueError, 'there are 4 stages: .* got 5'),
    (dict(out_indices=(0, 4)), ValueError, r'there are 4 stages: .* got \(0, 4\)'),
    (dict(feature_cls='hook'), ValueError, 'create_feature_extractor'),
    (dict(features_only=False, out_indices=1), ValueError, 'need features_only=True'),
    (dict(pretrained=True), CheckpointError, 'no weights of reduceformer_b1'),
    (dict(pretrained=True, pretrained_strict=False), ValueError, 'completely or not'),
    (dict(pretrained_cfg='in1k'), ValueError, "has no tags, got 'in1k'"),
])
def test_what_cannot_be_done_is_said(arguments, error, message):
    with pytest.raises(error, match=message):
        timm.create_model('mm_reduceformer_b1', **{'features_only': True, **arguments})
