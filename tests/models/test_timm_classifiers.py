"""Our classifiers keep what timm promises of its models."""
import copy
import functools
import math

import mmpretrain
import pytest
import timm
import torch
from mmengine.config import Config
from timm.models import create_feature_extractor
from timm.models._features import FeatureGetterNet
from timm.optim import param_groups_layer_decay

from mm_efficient.errors import ExecutionError
from mm_efficient.files import configs_folder
from mm_efficient.models.efficientvit.weights import EfficientViTFamily
from mm_efficient.weights import CheckpointError
from mm_efficient.weights.family import FAMILIES

SMALL = ['mm_soft_tiny', 'mm_ecoformer_pvt_b0', 'mm_ecoformer_twins_s',
         'mm_swiftformer_xs', 'mm_lowformer_b0', 'mm_reduceformer_b1']
IMAGES = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))


@functools.cache
def classifier(name):
    """With ten classes; hash functions are made up, which is faster than fitting."""
    model = timm.create_model(name, num_classes=10).eval()
    for key, buffer in model.named_buffers():
        if key.endswith('anchors'):
            torch.nn.init.normal_(buffer)
        elif key.endswith('fitted'):
            buffer.fill_(True)
    return model


def config(variant):
    path, = (configs_folder() / 'cls').glob(f'{variant}_30*e.py')
    return Config.fromfile(path)


@pytest.mark.parametrize('name', SMALL)
@torch.no_grad()
def test_features_head_and_intermediates(name):
    model = classifier(name)
    features = model.forward_features(IMAGES)
    logits = model(IMAGES)
    assert logits.shape == (2, model.num_classes) == (2, 10)
    assert logits.equal(model.forward_head(features))
    pooled = model.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, model.head_hidden_size)
    tokens = name == 'mm_soft_tiny'
    assert features.shape == ((2, 7, model.num_features) if tokens
                              else (2, model.num_features, 2, 3))
    again, maps = model.forward_intermediates(IMAGES)
    assert again.equal(features)
    assert [tuple(x.shape[1:]) for x in maps] == [
        (info['num_chs'], -(-64 // info['reduction']), -(-96 // info['reduction']))
        for info in model.feature_info]
    if tokens:
        assert maps[3].flatten(2).transpose(1, 2).equal(features[:, 1:])
    else:
        assert maps[3].equal(features)
    chosen = model.forward_intermediates(IMAGES, [-1, 0], intermediates_only=True)
    assert chosen[0].equal(maps[0]) and chosen[1].equal(maps[3])


@pytest.mark.parametrize('name', SMALL)
def test_stages_that_are_not_needed(name):
    model = copy.deepcopy(classifier(name))
    with torch.no_grad():
        _, expected = model.forward_intermediates(IMAGES, [0, 1])
        features, maps = model.forward_intermediates(IMAGES, [0, 1], stop_early=True)
    assert features.equal(expected[1])
    assert all(x.equal(y) for x, y in zip(maps, expected, strict=True))
    assert model.prune_intermediate_layers([-4, 1]) == [0, 1]
    assert model(IMAGES).equal(expected[1])
    maps = model.forward_intermediates(IMAGES, 2, intermediates_only=True)
    assert all(x.equal(y) for x, y in zip(maps, expected, strict=True))
    model.reset_classifier(4, 'avg')
    logits = model.train()(IMAGES)
    logits.sum().backward()
    assert logits.shape == (2, 4) and model.num_features == expected[1].shape[1]
    assert not [key for key, p in model.named_parameters() if p.grad is None]


def test_the_head_can_be_kept():
    model = copy.deepcopy(classifier('mm_lowformer_b0'))
    assert model.prune_intermediate_layers(prune_head=False) == [3]
    assert model(IMAGES).equal(classifier('mm_lowformer_b0')(IMAGES))
    model.prune_intermediate_layers(1)
    assert model(IMAGES).equal(model.forward_features(IMAGES))
    assert not [*model.head.parameters()]


@pytest.mark.parametrize('name', SMALL)
def test_names_that_timm_describes(name):
    model = classifier(name)
    names = set(model.state_dict())
    layers = model.pretrained_cfg['classifier']
    layers = (layers, ) if isinstance(layers, str) else layers
    assert {f'{layer}.weight' for layer in layers} <= names
    assert f"{model.pretrained_cfg['first_conv']}.weight" in names
    given = model.get_classifier()
    given = given if isinstance(given, tuple) else (given, )
    assert [model.get_submodule(layer) for layer in layers] == [*given]


@pytest.mark.parametrize('name', SMALL)
def test_all_parameters_learn(name):
    model = classifier(name).train()
    model(IMAGES).sum().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None]
    model.eval().zero_grad()


@pytest.mark.parametrize('name', SMALL)
@torch.no_grad()
def test_graph_of_torch_fx(name):
    model = classifier(name)
    graph = create_feature_extractor(model, {'backbone.stages.1': 'map',
                                             'head.fc': 'logits'})
    outputs = graph(IMAGES)
    assert outputs['map'].equal(
        model.forward_intermediates(IMAGES, [1], intermediates_only=True)[0])
    if name != 'mm_swiftformer_xs':  # which averages two layers
        assert outputs['logits'].equal(model(IMAGES))
    with pytest.raises(ValueError, match='at least 32 x 32 pixels, got 16 x 96'):
        model(IMAGES[:, :, :16])


@torch.no_grad()
def test_traced_but_not_scripted():
    model = classifier('mm_swiftformer_xs')
    traced = torch.jit.trace(model, IMAGES, check_trace=False)
    torch.testing.assert_close(traced(IMAGES), model(IMAGES))
    with pytest.raises(ExecutionError, match='SwiftFormer: .* Use torch.jit.trace'):
        torch.jit.script(model)


@pytest.mark.parametrize('name', SMALL)
@torch.no_grad()
def test_same_as_the_classifier_of_mmpretrain(name):
    variant = name.removeprefix('mm_')
    model = classifier(name)
    theirs = mmpretrain.get_model(config(variant), head=dict(num_classes=10))
    theirs.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(IMAGES), theirs.eval()(IMAGES))


@pytest.mark.parametrize('family', FAMILIES, ids=lambda family: family.name)
def test_heads_and_crops_are_those_of_the_configs(family):
    # Variants of the others differ in nothing but the width
    several = isinstance(family, EfficientViTFamily)
    for variant in [*family.variants][:None if several else 1]:
        cfg = config(variant)
        head = family.classifier(family.variants[variant])['head']
        assert {key: cfg.model.head.get(key) for key in head} == head
        resize, crop = cfg.test_dataloader.dataset.pipeline[-3:-1]
        share = timm.get_pretrained_cfg(f'mm_{variant}').crop_pct
        assert resize.scale in (int(crop.crop_size / share),
                                math.ceil(crop.crop_size / share))
        assert resize.interpolation == 'bicubic'


def test_classifiers_are_replaced():
    model = timm.create_model('mm_swiftformer_xs', num_classes=0, global_pool='')
    assert model(IMAGES).shape == (2, 220, 2, 3)
    model.reset_classifier(0, 'avg')
    assert model(IMAGES).shape == (2, 220) and model.num_classes == 0
    assert isinstance(model.get_classifier()[0], torch.nn.Identity)
    model.double().reset_classifier(7)
    assert model(IMAGES.double()).shape == (2, 7) and model.num_classes == 7
    assert model.get_classifier()[0].weight.std().item() == pytest.approx(0.02, rel=0.2)
    model.set_distilled_training()
    assert [x.shape for x in model(IMAGES.double())] == [(2, 7), (2, 7)]
    assert model.eval()(IMAGES.double()).shape == (2, 7)


@torch.no_grad()
def test_pooling_of_tokens():
    model = timm.create_model('mm_soft_tiny', num_classes=0, global_pool='avg').eval()
    tokens = model.forward_features(IMAGES)
    assert model(IMAGES).equal(tokens[:, 1:].mean(1))
    model.reset_classifier(0, 'token')
    assert model(IMAGES).equal(tokens[:, 0])


def test_built_on_the_meta_device():
    with torch.device('meta'):
        model = timm.create_model('mm_soft_tiny')
    assert all(p.is_meta for p in model.parameters())


def test_options_of_the_model():
    model = timm.create_model('mm_reduceformer_b1', in_chans=1, drop_rate=1.,
                              drop_path_rate=0.3, dtype=torch.float64)
    assert model.in_chans == 1 and model.num_classes == 1000
    assert model.backbone.pretrain_size is None  # the published function
    assert max(module.drop_prob for module in model.modules()
               if type(module).__name__ == 'DropPath') == pytest.approx(0.3)
    logits = model(IMAGES[:, :1].double())
    assert (logits == model.get_classifier().bias).all()  # all its input is dropped


@pytest.mark.parametrize(('options', 'message'), [
    (dict(global_pool='max'), r"one of \['avg', ''\], got 'max'"),
    (dict(global_pool=''), 'pass num_classes=0, got 1000')])
def test_poolings_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model('mm_lowformer_b0', **options)


@torch.no_grad()
def test_timm_wraps_classifiers():
    model = classifier('mm_lowformer_b0')
    wrapped = FeatureGetterNet(model, out_indices=(1, 2))
    assert [x.shape[1] for x in wrapped(IMAGES)] == wrapped.feature_info.channels()


def test_layers_for_learning_rate_decay():
    model = classifier('mm_soft_tiny')
    groups = param_groups_layer_decay(
        model, layer_decay=0.5, no_weight_decay_list=model.no_weight_decay())
    scales = sorted({group['lr_scale'] for group in groups})
    depth = sum(len(stage.blocks) for stage in model.backbone.stages)
    assert len(scales) >= depth + 2 and scales[-1] == 1
    names = {id(p): name for name, p in model.named_parameters()}
    assert sum(len(group['params']) for group in groups) == len(names)
    kept, = {group['weight_decay'] for group in groups for p in group['params']
             if names[id(p)] == 'backbone.stages.3.cls_token'}
    assert kept == 0


def test_known_weights_are_listed():
    listed = {name.removeprefix('mm_')
              for name in timm.list_models('mm_*', pretrained=True)}
    assert listed == {name for family in FAMILIES for name in family.downloads}


@pytest.mark.parametrize('classes', [1000, 10, 0])
def test_published_weights(hub, timm_file, classes):
    hub.files['timm/swiftformer_xs.dist_in1k'] = timm_file
    model = timm.create_model('mm_swiftformer_xs', pretrained=True, num_classes=classes,
                              in_chans=1)
    for key, value in model.state_dict().items():
        published = 6 if key == 'backbone.stem.0.weight' else 2
        last = key.startswith('head.fc') and classes != 1000
        assert (value == published).all() != last, key


def test_weights_in_files(tmp_path):
    tensors = classifier('mm_swiftformer_xs').state_dict()
    file = tmp_path / 'classifier.pth'
    torch.save(dict(state_dict=tensors), file)
    overlay = dict(file=str(file))
    for options in (dict(pretrained=True, pretrained_cfg_overlay=overlay),
                    dict(checkpoint_path=str(file))):
        model = timm.create_model('mm_swiftformer_xs', num_classes=10, **options)
        torch.testing.assert_close(model.state_dict(), tensors)
    zeros = {key: torch.zeros_like(value) for key, value in tensors.items()}
    torch.save(dict(state_dict=zeros, state_dict_ema=tensors), file)  # as timm's train
    model = timm.create_model('mm_swiftformer_xs', pretrained=True, num_classes=10,
                              pretrained_cfg_overlay=overlay)
    torch.testing.assert_close(model.state_dict(), tensors)
    with pytest.raises(CheckpointError, match=r'4 tensors of another shape: fc.weight'):
        timm.create_model('mm_swiftformer_xs', pretrained=True,
                          pretrained_cfg_overlay=overlay)
    torch.save({key: value for key, value in tensors.items()
                if not key.startswith('head.fc')}, file)
    with pytest.raises(CheckpointError, match='4 tensors missing: fc.weight, fc.bias'):
        timm.create_model('mm_swiftformer_xs', pretrained=True, num_classes=10,
                          pretrained_cfg_overlay={**overlay, 'num_classes': 10})


def test_what_timm_saves_it_loads(tmp_path):
    model = classifier('mm_swiftformer_xs')
    timm.models.save_for_hf(model, tmp_path, model_config=dict(num_classes=10))
    for options in ({}, dict(features_only=True)):
        again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, **options)
        for key, value in again.state_dict().items():
            if 'output_norms' not in key:
                assert value.equal(model.state_dict()[key]), key
