"""The metafiles and the model zoo page: up to date, and readable by their readers."""
import functools
import json
from pathlib import Path

import pytest
import tables
import torch
from metafiles import (
    FAMILIES,
    MEASURED,
    TASKS,
    find_entries,
    measure,
    metafile,
    model_index,
    parity_errors,
    read_measured,
)
from mmengine.config import Config
from mmpretrain.apis.model import ModelHub
from modelindex.load_model_index import load

from mm_efficient.analysis import from_config
from mm_efficient.analysis.benchmark import COLUMNS
from mm_efficient.analysis.results import write_results
from mm_efficient.errors import InputError

ROOT = Path(__file__).parents[2]
STALE = 'is stale: run tools/model_zoo/update_model_zoo.py'
ENTRIES = find_entries(ROOT)
measured = functools.cache(lambda: read_measured(ROOT))


def smallest():
    """The configs of the smallest variant of every family."""
    found = {}
    for entry in ENTRIES:
        size = measured().get(entry.config, {}).get('Backbone Parameters', 0)
        if entry.method == 'cls' and size <= found.get(entry.family, (size, ))[0]:
            found[entry.family] = size, entry.variant
    chosen = [variant for _, variant in found.values()]
    return [entry for entry in ENTRIES if entry.variant in chosen]


def test_every_config_is_measured():
    assert set(measured()) == {entry.config for entry in ENTRIES}, f'metafile {STALE}'


@pytest.mark.parametrize('name', ['model-index.yml', *(
    f'configs/{task}/metafile.yml' for task in TASKS)])
def test_metafile_says_what_configs_and_reports_say(name):
    task = name.split('/')[1] if '/' in name else None
    expected = metafile(task, ENTRIES, measured(), ROOT) if task else model_index()
    assert (ROOT / name).read_text() == expected, f'{name} {STALE}'


@pytest.mark.parametrize('family', FAMILIES)
def test_parameters_are_those_of_the_configs(family):
    """Of all classifiers; heads of the other tasks are measured below."""
    for entry in ENTRIES:
        if entry.family == family and entry.task == 'cls':
            cfg = Config.fromfile(ROOT / entry.config)
            with torch.device('meta'):
                model = from_config(cfg, entry.variant).build()
            sizes = [sum(p.numel() for p in part.parameters())
                     for part in (model, model.backbone)]
            given = measured()[entry.config]
            assert sizes == [given['Parameters'], given['Backbone Parameters']], (
                f'{entry.config}: metafile {STALE}')


@pytest.mark.parametrize('entry', smallest(), ids=lambda entry: Path(entry.config).stem)
def test_figures_are_measured(entry):
    assert measure(entry, ROOT) == measured()[entry.config], f'metafile {STALE}'


def test_page():
    page = (ROOT / tables.PAGE).read_text()
    parity = json.loads((ROOT / 'tests/reference/parity_errors.json').read_text())
    text = tables.family_tables(ENTRIES, measured(), parity, tables.count_baselines(),
                                tables.read_latencies(ROOT))
    assert tables.insert(page, text) == page, f'{tables.PAGE} {STALE}'
    for entry in ENTRIES:
        assert page.count(f'\n| `{entry.variant}` |') == 2  # measured and reported
    with pytest.raises(InputError, match='model_zoo.md lacks the lines'):
        tables.insert(page.replace(tables.END, ''), text)


def test_baselines_are_counted():
    counts = tables.count_baselines()
    assert counts['ResNet-50']['Parameters'] == 25557032
    assert counts['ResNet-50']['FLOPs'] == 4089184256  # 4.09 G, as published
    assert counts['Swin-T']['Backbone Parameters'] == 28288354 - 769000
    ratio = counts['ResNet-50']['Backbone FLOPs'] / (4089184256 - 2048000)
    assert ratio == pytest.approx(800 * 1344 / 224**2, rel=1e-3)


def test_latencies_in_tables(tmp_path):
    """Relative to the baselines; empty for what was not timed."""
    settings = dict(hardware='a CPU', device='cpu', threads=2, torch='2.11.0+cpu',
                    rounds=5)
    names = ['resnet50_8xb32_in1k', 'swin-tiny_16xb64_in1k', 'soft_tiny_retinanet_1x']
    texts = dict(backend='eager', dtype='fp32', step='forward')
    rows = [dict.fromkeys(COLUMNS, 20) | texts
            | dict(model=name, ratio=ratio, median_ms=ms)
            for name, ratio, ms in zip(names, (1., 1.25, 0.5), (2000., 2501., 1000.))]
    path = tmp_path / 'docs' / tables.LATENCIES['latency 800']
    path.parent.mkdir(parents=True)
    write_results(path, rows, settings)
    latencies = tables.read_latencies(tmp_path)
    assert list(latencies) == ['latency 800']
    lines = tables.family_tables(
        ENTRIES, measured(), {}, {'Swin-T': dict.fromkeys(tables.COUNTS, 10**9)},
        latencies).splitlines()
    assert '| model | params (M) | GMACs 224 | GFLOPs 800 | latency 800 |' in lines
    assert '| Swin-T | 1000.00 / 1000.00 | 1.00 | 2.0 | 1.25 / 1.00 |' in lines
    assert '| `soft_tiny` | 13.07 / 12.56 | 2.12 | 86.9 | 0.50 / 0.40 |' in lines
    assert '| `soft_tiny_norm` | 13.07 / 12.56 | 2.12 | 86.9 |  |' in lines
    text = ' '.join(line.strip() for line in lines)
    assert ('Latency 800: ResNet-50 2000 ms, Swin-T 2501 ms; a CPU, 2 CPU threads, '
            'PyTorch 2.11.0, 20 passes in 5 rounds; ') in text
    write_results(path, rows[:1], settings)
    with pytest.raises(InputError, match='has no results of swin-tiny_16xb64_in1k'):
        tables.read_latencies(tmp_path)


def test_parity_errors_are_the_worst_of_the_log():
    log = '''.soft_tiny [2, 3, 224, 224]: worst relative error 1.5e-15
soft_tiny [1, 3, 200, 264]: worst relative error 4.7e-14
.pvtv2_b0_msa [2, 3, 224, 224]: worst relative error 1.0e-15'''
    assert parity_errors(log) == {'soft_tiny': 4.7e-14, 'pvtv2_b0_msa': 1e-15}


# ------------------------------------------------------------------ what is reported


def number(text):
    return float(text[:-1]) * dict(M=1e6, G=1e9)[text[-1]]


@pytest.mark.parametrize('variant', [v for f in FAMILIES.values() for v in f.variants])
def test_reported_parameters_and_macs_are_those_measured(variant):
    """Within rounding up or down, unless a mark in the table says otherwise."""
    family = next(f for f in FAMILIES.values() if variant in f.variants)
    entry = next(e for e in ENTRIES if (e.variant, e.method) == (variant, 'cls'))
    for key, name in (('parameters', 'Parameters'), ('macs', 'FLOPs')):
        text = family.reported.figures[variant].get(key)
        if text is None:
            continue
        digits = text[:-1].partition('.')[2]
        unit = number('1' + text[-1]) * 10**-len(digits)
        ours = measured()[entry.config][name]
        share = 0.003  # LowFormer's E models are rounded to tens of millions
        if key == 'macs' and family is FAMILIES['ReduceFormer']:
            share = 0.035  # with norms, activations and biases
        agree = abs(ours - number(text)) < max(unit, share * ours)
        assert agree == ((variant, key) not in family.reported.deviates)


def test_reported_metrics_have_a_source_and_are_no_results():
    index = load(str(ROOT / 'model-index.yml'))
    models = {model.config: model for model in index.models}
    reported = 0
    for entry in ENTRIES:
        model, family = models[entry.config], FAMILIES[entry.family]
        given = {key.removeprefix('Reported '): value
                 for key, value in model.metadata.data.items()
                 if key.startswith('Reported ')}
        source = given.pop('By', None)
        assert given == family.reported.figures[entry.variant].get(entry.method, {})
        assert source == (family.reported.sources[entry.method] if given else None)
        assert not any(result.metrics for result in model.results)
        reported += bool(given)
    assert reported > 31


# ------------------------------------------------------------------- those who read it


def test_model_index():
    index = load(str(ROOT / 'model-index.yml'))
    index.build_models_with_collections()
    assert index.check(silent=True) == []
    assert {model.config for model in index.models} == {e.config for e in ENTRIES}
    names = [model.name for model in index.models]
    assert len(set(names)) == len(names) == 5 * 31 + 6 + 6
    for name in ('soft-small_8xb128_in1k', 'mask-rcnn_soft-small-norm_fpn_1x_coco',
                 'retinanet_lowformer-b15_fpn_1x_coco',
                 'swiftformer-l1_fpn_8xb4-40k_ade20k-512x512',
                 'ecoformer-twins-s_8xb32-30e_in1k',
                 'ecoformer-twins-s-softmax_8xb32-100e_in1k',
                 'reduceformer-b1_upernet_8xb2-160k_ade20k-512x512'):
        assert name in names
    for model in index.models:
        metadata = model.full_model.metadata.data
        assert set(MEASURED) <= set(metadata) and metadata['Architecture']


def test_weights_are_addresses_that_mim_can_download():
    index = load(str(ROOT / 'model-index.yml'))
    weights = {Path(model.config).stem: model.weights for model in index.models
               if model.weights}
    assert set(weights) == {
        entry.config.split('/')[-1][:-3] for entry in ENTRIES if entry.method == 'cls'
        and entry.variant in FAMILIES[entry.family].downloads}
    assert len(weights) == 6 + 4 + 7
    assert weights['ecoformer_pvt_b0_30e'] == (
        'https://github.com/ziplab/EcoFormer/releases/download/v1.0/'
        'pvtv2_b0_ecoformer.pth')
    assert weights['swiftformer_xs_300e'] == (
        'https://huggingface.co/timm/swiftformer_xs.dist_in1k/resolve/main/'
        'model.safetensors#/swiftformer_xs.safetensors')
    names = [url.rpartition('/')[2] for url in weights.values()]
    assert len(set(names)) == len(names)  # files of one folder


def test_mmpretrain_builds_classifiers_by_name(monkeypatch):
    monkeypatch.setattr(ModelHub, '_models_dict', {})
    monkeypatch.setattr(ModelHub, '_ModelHub__mmpretrain_registered', True)
    ModelHub.register_model_index(ROOT / 'configs/cls/metafile.yml', ROOT)
    assert len(ModelHub._models_dict) == 31 + 6 + 6
    found = ModelHub.get('soft-small-norm_8xb128_in1k')
    assert found.config.model.backbone == dict(
        type='SOFT', arch='small', normalized=True, out_type='cls_token')
    assert [result.task for result in found.results] == ['Image Classification']
