"""Detectors and segmentors start from the published weights of their backbone."""
import json
import re

import pytest
import torch
from config_grid import CONFIGS, EXAMPLE_OF, LEAVES, ON_DISK, load, meta_backbone
from mmengine.registry import DefaultScope

from mm_efficient import runs
from mm_efficient.weights import FAMILIES, convert_checkpoint

DENSE = [name for name in ON_DISK if not name.startswith('cls')]
REFERENCE = CONFIGS.parent / 'tests' / 'reference'
# Of every variant, the names and shapes in its published file
FILES = {
    variant: file for family in FAMILIES for variant in family.variants
    for file in REFERENCE.glob(f'*/{family.references.get(variant, variant)}.json')}


def test_all_dense_configs_and_files_are_here():
    assert len(DENSE) == 124 == 4 * len(FILES)


@pytest.mark.parametrize('name', DENSE)
def test_config_names_the_weights_of_its_variant(name):
    variant = LEAVES[name].variant
    assert load(name).model.backbone.init_cfg == dict(
        type='Pretrained', checkpoint=f'published://{variant}')


@pytest.mark.parametrize('name', [n for n in ON_DISK if n.startswith('cls')])
def test_classifiers_start_from_scratch(name):
    assert 'init_cfg' not in load(name).model.backbone


def write_published(variant, path):
    """A file like the published one, of a single value per tensor; its conversion."""
    names = json.loads(FILES[variant].read_text())['state_dict'].items()
    tensors = {key: torch.full((), i % 50, dtype=getattr(torch, dtype)).expand(shape)
               for i, (key, (shape, dtype)) in enumerate(names, 1)}
    torch.save(tensors, path)
    return convert_checkpoint(tensors).state_dict


def check_loaded(backbone, expected):
    for key, value in backbone.state_dict().items():
        if not any(re.fullmatch(pattern, key) for pattern in backbone.DENSE_ONLY):
            assert value.equal(expected[f'backbone.{key}']), key


@pytest.mark.parametrize('variant', FILES)
def test_every_tensor_of_a_file_in_checkpoints_is_loaded(checkpoints, variant):
    expected = write_published(variant, checkpoints / f'{variant}.pth')
    name = next(n for n in DENSE if LEAVES[n].variant == variant)
    with DefaultScope.overwrite_default_scope('mmpretrain'), torch.device('meta'):
        backbone = type(meta_backbone(name))(**{
            key: value for key, value in load(name).model.backbone.items()
            if key != 'type'})
    backbone.to_empty(device='cpu')  # without initialisation, which takes seconds
    for tensor in backbone.state_dict().values():
        tensor.fill_(77)
    backbone.init_weights()
    check_loaded(backbone, expected)


@pytest.mark.parametrize('name', [
    'det/soft_tiny_norm_maskrcnn_1x', 'seg/ecoformer_twins_s_fpn_80k',
    'det/swiftformer_xs_retinanet_1x', 'seg/lowformer_b0_upernet_160k',
    'seg/reduceformer_b1_fpn_80k'])
def test_runner_starts_from_the_file(checkpoints, name):
    variant = LEAVES[name].variant
    expected = write_published(variant, checkpoints / f'{variant}.pth')
    cfg = load(name).copy()
    cfg.update(work_dir=str(checkpoints / 'work'), log_level='ERROR')
    runner = runs.build_runner(cfg)
    runner._init_model_weights()
    check_loaded(runner.model.backbone, expected)


def test_every_family_is_among_them():
    assert len({LEAVES[name].backbone['type'] for name in DENSE}) == len(EXAMPLE_OF)
