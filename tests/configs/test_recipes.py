"""Every config against the published values, which stand in docs/."""
import copy

import pytest
from config_grid import EVERY_LEAF, ON_DISK, differing_keys, load, smallest
from published import DOCS, LOADERS, lookup, published, read_value, unlike_published
from recipe_runner import GPUS, evaluated

pytestmark = pytest.mark.skipif(
    not DOCS.exists(), reason='needs the pages of a checkout')
CLASSIFIERS = [name for name in ON_DISK if name.startswith('cls')]


@EVERY_LEAF
def test_values_are_the_published_ones(name):
    wrong = unlike_published(name, load(name))
    assert not wrong, '\n'.join(wrong)


@EVERY_LEAF
def test_tables_cover_config(name):
    keys = [row.key for row in published()[name]]
    assert {'train_dataloader.batch_size', 'optim_wrapper.optimizer.lr',
            'optim_wrapper.optimizer.weight_decay'} <= set(keys)
    assert len(keys) == len(set(keys))  # a key has one value


def test_keys_lead_somewhere():
    keys = {row.key for rows in published().values() for row in rows}
    assert [key for key in keys
            if all(lookup(load(name), key) is None for name in ON_DISK)] == []


@pytest.mark.parametrize('text, value', [
    ('-', None), ('AdamW', 'AdamW'), ('regnety_160', 'regnety_160'), ('True', True),
    ('1e-3 x 256 / 1024', 1e-3 / 4), ('1 - 0.99996', 1 - 0.99996),
    ('[local, attn]', ['local', 'attn']), ('(0.9, 0.999)', (0.9, 0.999)),
])
def test_read_value(text, value):
    assert read_value(text) == value


def test_difference_names_row_and_values():
    name = 'cls/soft_medium_norm_300e'
    config = copy.deepcopy(load(name))
    config.custom_hooks[0].momentum = 0.1
    config.train_dataloader.dataset.pipeline.pop(4)
    *augment, average = unlike_published(name, config)
    assert [line.rpartition('here ')[2] for line in augment] == ['None'] * 3
    assert average.startswith('recipes.md:') and ': average' in average
    assert average.endswith(
        f'(`custom_hooks.EMAHook.momentum`): published {1 - 0.99996!r}, here 0.1')


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_variants_differ_where_the_tables_have_columns_for_them(name):
    of_variants = {row.key for row in published()[name] if not row.shared}
    for short, key in LOADERS.items():
        of_variants |= {k.replace(short, key) for k in of_variants}
    of_variants |= {k.replace('test_data', 'val_data') for k in of_variants}
    allowed = of_variants | {
        'model.backbone.arch', 'model.backbone.normalized', 'model.head.in_channels',
        'model.head.hidden_dims', 'auto_scale_lr.base_batch_size',
        'custom_hooks.AccumulationRestartHook'}
    assert [key for key in differing_keys(load(name), load(smallest(name)))
            if not any(f'{one}.'.startswith(f'{key}.') for one in allowed)] == []


@EVERY_LEAF
def test_learning_rate_is_for_eight_gpus(name):
    config = load(name)
    assert config.auto_scale_lr == dict(
        enable=False, base_batch_size=GPUS * config.train_dataloader.batch_size)


@pytest.mark.parametrize('name', CLASSIFIERS)
def test_validation_and_test_are_alike(name):
    assert load(name).val_dataloader == load(name).test_dataloader


@pytest.mark.parametrize('name', [
    'cls/soft_tiny_300e', 'cls/swiftformer_l1_300e', 'cls/ecoformer_pvt_b0_30e',
    'cls/lowformer_b0_300e', 'cls/reduceformer_b1_r288_300e'])
def test_evaluation(name):
    keys = 'test_pipeline.ResizeEdge.scale', 'test_pipeline.CenterCrop.crop_size'
    assert evaluated(name) == tuple(lookup(load(name), key) for key in keys)
