"""The benchmark: rounds, statistics and backends."""
import csv
import functools
import json
import math
import sys

import pytest
import timm
import torch
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend

from mm_efficient.analysis import ModelSpec, backends, benchmark
from mm_efficient.analysis.backends import build_model
from mm_efficient.analysis.benchmark import (
    BenchmarkConfig,
    BenchmarkRun,
    reported_top1,
    run_benchmark,
)
from mm_efficient.analysis.complexity import Forward, call_model
from mm_efficient.analysis.models import expand_groups, find_model
from mm_efficient.analysis.results import check_addition, read_results, write_results
from mm_efficient.analysis.tables import ratio_table, read_published, time_table
from mm_efficient.errors import ExecutionError, InputError

CONFIG = """
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    backbone=dict(type='{family}', out_indices=(0, 1, 2, 3), arch={arch}))
train_dataloader = test_dataloader = dict(dataset=dict())
"""
SWIFT = "dict(embed_dims=[8, 8, 16, 16], depths=[1, 1, 1, 1])"
ECO = ('dict(embed_dims=[8, 16, 40, 64], num_heads=[1, 2, 5, 8], depths=[1, 1, 1, 1], '
       'mlp_ratios=[1, 1, 1, 1])')
SHORT = BenchmarkConfig(iterations=2, rounds=2, warmup=1)


@pytest.fixture
def swift(tmp_path, monkeypatch):
    """Name of a tiny model whose output is its feature maps."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'swift.py').write_text(CONFIG.format(family='SwiftFormer', arch=SWIFT))
    (tmp_path / 'eco.py').write_text(CONFIG.format(family='EcoFormerPVT', arch=ECO))
    return 'swift.py'


# ------------------------------------------------------------------------- rounds


class FakeClock:
    """Takes the given seconds, and notes its name."""

    def __init__(self, calls, name, seconds):
        self.calls, self.name, self.seconds = calls, name, seconds

    def __call__(self):
        self.calls.append(self.name)
        return self.seconds


def time_in_rounds(clocks, iterations, rounds, max_seconds):
    return benchmark._time_in_rounds(clocks, BenchmarkConfig(
        iterations=iterations, rounds=rounds, max_seconds=max_seconds))


def test_rounds_are_interleaved():
    calls = []
    found = time_in_rounds(
        [FakeClock(calls, 'slow', 2.), FakeClock(calls, 'fast', 1.)], 5, 2, 100)
    assert found == [[[2.] * 3, [2.] * 2], [[1.] * 3, [1.] * 2]]
    # The first pass of each turn does not count
    assert calls == 4 * ['slow'] + 4 * ['fast'] + 3 * ['slow'] + 3 * ['fast']


def test_rounds_end_early():
    clocks = [FakeClock([], 'a', 3.), FakeClock([], 'b', 0.5)]
    found = time_in_rounds(clocks, 100, 2, 4)
    assert [[len(samples) for samples in each] for each in found] == [[1, 1], [4, 4]]
    assert [len(rounds) for rounds in time_in_rounds(clocks, 3, 10, 4)] == [3, 3]


# ------------------------------------------------------------------------ results


def make_row(model, rounds, baseline, deviation=0.):
    run = BenchmarkRun(model, 'eager', 'fp32', 4, 224, 192)
    return benchmark._row(run, rounds, baseline, 100., 0.75, deviation)


def test_rows(tmp_path):
    """Three rounds; the second model takes half to twice the time."""
    baseline = [[1., 1., 4.], [2.], [3., 3., 5.]]
    first = make_row('a', baseline, baseline, math.nan)
    second = make_row('soft_tiny', [[2., 2., 2.], [3.], [1.5]], baseline)
    assert first['median_ms'] == 3000. and first['passes'] == 7
    assert first['images_per_s'] == pytest.approx(4 / 3)
    assert first['ratio'] == first['ratio_min'] == first['ratio_max'] == 1.
    assert first['top1_reported'] is None and first['deviation'] is None
    assert first['bandwidth'] == 0.25  # 0.75 s at least, of 3 s
    # Ratios of the medians of the rounds: 2, 1.5, 0.5
    assert (second['ratio'], second['ratio_min'], second['ratio_max']) == (1.5, 0.5, 2.)
    assert second['top1_reported'] == 79.3 and second['deviation'] == 0
    assert (second['height'], second['width']) == (224, 192)

    write_results(tmp_path / 'r.json', [first, second], SHORT.settings())
    rows, settings = read_results(tmp_path / 'r.json')
    assert rows == [first, second]
    assert settings['iterations'] == 2 and settings['hardware']
    write_results(tmp_path / 'r.csv', rows, settings)
    with open(tmp_path / 'r.csv', newline='') as file:
        read = list(csv.DictReader(file))
    assert float(read[1]['median_ms']) == second['median_ms']
    assert read[0]['top1_reported'] == ''
    assert len(list(tmp_path.iterdir())) == 2


def test_files_that_are_added_to(tmp_path):
    path = tmp_path / 'r.jsonl'
    rounds = [[1.], [1.]]
    rows = [make_row(name, rounds, [[2.], [2.]]) for name in ('a', 'b', 'a')]
    rows[2]['ratio'] = 3.
    settings = SHORT.settings()
    write_results(path, rows[:2], settings)
    path.write_text(path.read_text().replace('\n', '\n\n').rstrip())  # by an editor
    check_addition(path, settings)
    write_results(path, rows[2:], settings | dict(rounds=9))
    assert read_results(path) == ([rows[2], rows[1]], settings | dict(rounds=9))


def test_machines_are_not_mixed(tmp_path):
    path, settings = tmp_path / 'r.jsonl', SHORT.settings()
    other = settings | dict(hardware='another CPU')
    row = make_row('a', [[1.]], [[2.]])
    write_results(path, [row], settings)
    with pytest.raises(InputError, match='others have another CPU, which are not'):
        check_addition(path, other)
    write_results(path, [row], other)
    with pytest.raises(InputError, match='others have another CPU, which are not'):
        read_results(path)


@pytest.mark.parametrize('change', [
    dict(ratio=None), dict(ratio='fast'), dict(backend=None), dict(model=['a']),
    dict(median_ms=None), dict(settings={}), dict(settings=[])])
def test_rows_of_something_else(change, tmp_path):
    row = dict(make_row('a', [[1.]], [[2.]]), settings=SHORT.settings()) | change
    for name, content in (('r.json', dict(row, results=[row])), ('r.JSONL', row),
                          ('e.json', dict(row, results=[]))):
        (tmp_path / name).write_text(json.dumps(content))
        with pytest.raises(InputError, match=f'{name} is not a result file'):
            read_results(tmp_path / name)


def test_files_without_a_bandwidth(tmp_path):
    row = make_row('a', [[1.]], [[2.]])
    del row['bandwidth']
    write_results(tmp_path / 'r.json', [row], SHORT.settings())
    assert read_results(tmp_path / 'r.json')[0] == [row | dict(bandwidth=None)]


def test_table_of_ratios(tmp_path):
    def row(model, backend, step, ratio, batch_size=1):
        return dict(model=model, backend=backend, dtype='fp32', batch_size=batch_size,
                    height=224, width=224, step=step, ratio=ratio, peak_mib=20.)
    rows = [row('a', 'eager', 'forward', 1.), row('b', 'eager', 'forward', 0.5),
            row('b', 'eager', 'train', 0.25, 4),
            row('b', 'fused+onnxruntime', 'forward', 0.125)]
    (tmp_path / 'p.json').write_text(json.dumps(dict(published=dict(
        b=dict(forward_b1_224=[0.6, 0.5, 0.7])))))
    assert ratio_table(rows, read_published(tmp_path / 'p.json')).splitlines() == [
        '| model | forward, 1 x 224: eager | published | fused+ONNX Runtime | '
        'train, 4 x 224: eager | MiB |',
        '|---|---|---|---|---|---|',
        '| `a` | 1.000 |  |  |  |  |',
        '| `b` | 0.500 | 0.600 | 0.125 | 0.250 | 20 |']
    with pytest.raises(InputError, match='is not a file of published ratios'):
        read_published(tmp_path / 'nowhere.json')


def test_table_of_times(tmp_path):
    def row(model, backend, dtype, batch_size, bandwidth, median_ms):
        return dict(model=model, backend=backend, dtype=dtype, batch_size=batch_size,
                    height=224, width=224, step='forward', ratio=1., peak_mib=None,
                    bandwidth=bandwidth, median_ms=median_ms,
                    images_per_s=1e3 * batch_size / median_ms)
    rows = [row('a', 'eager', 'fp32', 1, None, 12.3456),
            row('a', 'channels_last+cudagraph', 'fp16', 64, 0.456, 5.),
            row('b', 'eager', 'fp32', 1, 0.5, 2.)]
    table = time_table(rows)
    assert table.splitlines() == [
        '| model | forward, 1 x 224: eager | '
        'forward, 64 x 224: channels_last+CUDA graph fp16 |',
        '|---|---|---|',
        '| `a` | 12.3 ms | 5 ms, 12800/s, 46% |',
        '| `b` | 2 ms, 50% |  |']
    for device, published, expected in (
            ('cuda:0', {}, table), ('cuda:0', dict(a={}), ratio_table(rows, {})),
            ('cpu', {}, ratio_table(rows, {}))):
        write_results(tmp_path / 't.md', rows, dict(device=device), published)
        assert (tmp_path / 't.md').read_text() == expected


@pytest.mark.parametrize('content', [
    None, 'no JSON', '[]', '{"results": [], "seed": 0}',
    '{"results": [{"model": "a"}], "settings": {}}'])
def test_files_without_results(content, tmp_path):
    path = tmp_path / 'r.json'
    if content:
        path.write_text(content)
    with pytest.raises(InputError, match='r.json is not a result file .*--out'):
        read_results(path)


def test_reported_accuracy():
    assert reported_top1('resnet50_8xb32_in1k') == 76.55
    assert reported_top1('soft_small_norm') == 82.4
    assert reported_top1('lowformer_b2') is None  # no published classifier
    assert reported_top1('timm/resnet50') is None


# ----------------------------------------------------------------------- backends


def test_what_cannot_be_timed(swift):
    def start(model=swift, backend='eager', dtype='fp32', device='cpu', step='forward'):
        run_benchmark([BenchmarkRun(model, backend, dtype, 1, 64, 64, step)],
                      BenchmarkConfig(device=device))

    backends.check_backend('channels_last+compile', 'fp16')
    backends.check_backend('fused+onnxruntime', 'fp32')
    for settings, message in (
            (dict(model='resnet5'), 'there is no model .resnet5.'),
            (dict(backend='fast'), "unknown backend 'fast'"),
            (dict(backend='compile+eager'), "unknown backend 'compile.eager'"),
            (dict(backend='channels_last+onnxruntime'), 'memory format itself'),
            (dict(backend='onnxruntime', dtype='bf16'), 'fp32 only'),
            (dict(backend='converted'), 'converts to half precision, got fp32; add'),
            (dict(backend='fused', step='train'), 'fused is for inference only'),
            (dict(backend='converted', dtype='bf16', step='train'),
             'converted is for inference only'),
            (dict(backend='onnxruntime', step='train'), 'is for inference only'),
            (dict(backend='fused+cudagraph'), 'is for CUDA only, got device cpu; add'),
            (dict(backend='cudagraph', step='train', device='cuda'),
             'cudagraph is for inference only'),
            (dict(model='nowhere.py:make'), 'nowhere.py does not exist')):
        with pytest.raises(InputError, match=message):
            start(**settings)
    with pytest.raises(ExecutionError, match='device cuda:99 .* cannot be used'):
        start(device='cuda:99')
    with pytest.raises(ExecutionError, match='swift.py cannot run with backend eager '
                       'and fp32 on 1 x 3 x 16 x 16 images on cpu: Value'):
        run_benchmark([BenchmarkRun(swift, 'eager', 'fp32', 1, 16, 16)], SHORT)


def build_small():
    """A model in which every backend and change has something to do."""
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                         nn.Conv2d(8, 4, 3))


def test_backends_compute_the_same(monkeypatch):
    monkeypatch.setattr(torch, 'compile', functools.partial(
        torch.compile, backend='aot_eager'))  # the default one compiles for long
    small = ModelSpec('small', build_small, call_model, (24, 32))
    for module in backends, benchmark:
        monkeypatch.setattr(module, 'find_model', lambda name: small)
    names = ('eager', 'channels_last', 'torchscript', 'fused', 'fused+onnxruntime',
             'fused+channels_last+compile')
    threads = torch.get_num_threads()
    rows = run_benchmark([BenchmarkRun('small', backend, 'fp32', 2, 24, 32)
                          for backend in names], SHORT)
    assert [row['backend'] for row in rows] == list(names)
    for row in rows:
        assert row['passes'] == 2 and row['median_ms'] > 0
        assert row['deviation'] < 1e-5
        assert (row['peak_mib'] is None) == ('onnx' in row['backend'])
    eager, fused = rows[0], rows[names.index('fused')]
    assert eager['deviation'] == 0 < fused['deviation']
    assert fused['peak_mib'] < eager['peak_mib']
    assert torch.get_num_threads() == threads


def test_converted_models_are_in_half_precision(swift):
    ways = [('eager', 'fp32'), ('eager', 'bf16'), ('converted', 'bf16'),
            ('fused+converted', 'bf16')]
    rows = run_benchmark([BenchmarkRun(swift, backend, dtype, 2, 64, 64)
                          for backend, dtype in ways], SHORT)
    _, mixed, converted, fused = rows
    assert 0 < converted['deviation'] < 0.1 and 0 < fused['deviation'] < 0.1
    assert fused['peak_mib'] < converted['peak_mib'] < 0.7 * mixed['peak_mib']


def test_many_models_are_compiled(monkeypatch):
    """PyTorch compiles a function at most eight times, then runs it eagerly."""
    counter = CompileCounterWithBackend('eager')
    monkeypatch.setattr(torch, 'compile', functools.partial(
        torch.compile, backend=counter))
    for module in backends, benchmark:
        monkeypatch.setattr(module, 'find_model', lambda name: ModelSpec(
            name, lambda: nn.Conv2d(3, int(name), 1), call_model, (8, 8)))
    run_benchmark([BenchmarkRun(str(width), 'compile', 'fp32', 1, 8, 8)
                   for width in range(2, 13)], SHORT)
    assert counter.frame_count == 11


class Dropping(nn.Module):
    """A model with dropout, whose norm needs the statistics of the batch."""

    def __init__(self):
        super().__init__()
        self.layers = build_small().append(nn.Dropout(0.5))

    def forward(self, x):
        return self.layers(x).relu()


def test_training_steps(monkeypatch):
    """Nothing is random, gradients are compared, and memory includes activations."""
    monkeypatch.setattr(torch, 'compile', functools.partial(
        torch.compile, backend='aot_eager'))
    spec = ModelSpec('model', Dropping, call_model, (24, 32))
    for module in backends, benchmark:
        monkeypatch.setattr(module, 'find_model', lambda name: spec)
    rows = run_benchmark([
        BenchmarkRun('model', backend, dtype, 2, 24, 32, step)
        for step in ('forward', 'train') for backend, dtype in (
            ('eager', 'fp32'), ('channels_last+compile', 'fp32'), ('eager', 'bf16'))],
        SHORT)
    forward, train = rows[:3], rows[3:]
    assert [row['step'] for row in train] == 3 * ['train']
    assert [row['ratio'] for row in (forward[0], train[0])] == [1, 1]
    assert train[0]['deviation'] == 0 and train[1]['deviation'] < 1e-4
    assert 1e-3 < train[2]['deviation'] < 0.2
    # Inputs of the second convolution and of the norm, and what they are made of
    assert train[0]['peak_mib'] > 1.5 * forward[0]['peak_mib']


def test_gradients_count_in_the_deviation():
    one = backends.Result([torch.ones(2)], [torch.ones(3), torch.zeros(1)])
    other = backends.Result([torch.ones(2)], [torch.ones(3), torch.full((1, ), 0.25)])
    assert benchmark._deviation(one, one) == 0
    assert benchmark._deviation(other, one) == 0.25


MODULE = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Settings:
    width: 'int' = 4

def small():
    from beside_it import kernel
    return nn.Conv2d(3, Settings().width, kernel)

def number():
    return 1

def fails():
    raise KeyError('a key')
"""


def test_models_of_other_repositories(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [*sys.path])
    (tmp_path / 'theirs').mkdir()
    (tmp_path / 'theirs/model.py').write_text(MODULE)
    (tmp_path / 'theirs/beside_it.py').write_text('kernel = 5')
    (tmp_path / 'own_package.py').write_text('from torch.nn import Identity')
    x = torch.randn(1, 3, 32, 32)
    assert build_model('theirs/model.py:small', x)(x)[0].shape == (1, 4, 28, 28)
    assert build_model('own_package:Identity', x)(x)[0] is x
    for name, message in (
            ('theirs/model.py:smal', "has no function 'smal' .did you mean 'small'"),
            ('theirs/model.py:number', 'has to return an nn.Module, got a int'),
            ('theirs/model.py:fails', r"fails\(\) fails: KeyError: 'a key'. It is"),
            ('nowhere.model:small', "cannot be imported: ModuleNotFoundError: No mod")):
        with pytest.raises((InputError, ExecutionError), match=message):
            find_model(name).build()
    with pytest.raises(InputError, match='has no config to override'):
        find_model('theirs/model.py:small', {'a': 1})


def test_groups():
    names = expand_groups(['rivals', 'LowFormer', 'timm/resnet50', 'soft_tiny'])
    assert len(names) == len({*names}) == 11 + 8 + 1
    assert names[0] == 'timm/resnet50' and names[-2:] == ['lowformer_e3', 'soft_tiny']
    assert all(timm.is_model(name.removeprefix('timm/')) for name in names[:11])


def test_detectors_of_two_stages():
    """Boxes and masks for as many rows as the config sets."""
    x = torch.randn(1, 3, 64, 96)
    dets, _, masks = build_model('lowformer_e1_maskrcnn_1x', x)(x)
    assert dets.shape == (1, 100, 5) and masks.shape[:2] == (1, 100)


def test_shapes_and_dtypes(swift):
    """Each shape has its own first row, which ratios refer to."""
    rows = run_benchmark([BenchmarkRun(swift, 'eager', dtype, 1, 64, width)
                          for width in (64, 96) for dtype in ('fp32', 'bf16')], SHORT)
    assert [row['width'] for row in rows] == [64, 64, 96, 96]
    assert [row['ratio'] == 1 for row in rows] == [True, False, True, False]
    assert rows[0]['deviation'] == 0 and 1e-5 < rows[1]['deviation'] < 0.1


def test_backbones_and_unfitted_models(swift):
    x = torch.randn(1, 3, 64, 64)
    assert [tuple(y.shape[1:]) for y in build_model(swift, x)(x)] == [
        (8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)]
    feature_map = build_model('eco.py', x, backbone=True)(x)[0]
    assert feature_map.shape == (1, 8, 16, 16) and feature_map.isfinite().all()
    resnet = build_model('resnet18_8xb32_in1k', x, backbone=True)
    assert resnet(x)[0].shape == (1, 512, 2, 2) and not resnet.model.training
    name = 'timm/mobilenetv3_small_050'
    assert build_model(name, x, True)(x)[0].shape[2:] == (2, 2)
    assert build_model(name, x)(x)[0].shape == (1, 1000)


def test_all_tensors_of_an_output():
    class Model(nn.Module):
        def forward(self, x):
            return dict(a=[x, (2 * x, )], b=3 * x)
    found = Forward(Model(), lambda model, x: model(x))(torch.ones(1))
    assert [y.item() for y in found] == [1., 2., 3.]


def test_memory():
    layers = nn.Sequential(nn.Linear(1000, 5000, bias=False), nn.ReLU(),
                           nn.Linear(5000, 10, bias=False))
    x = torch.randn(256, 1000)
    with torch.inference_mode():
        peak = benchmark._peak_bytes(lambda: layers(x), cuda=False)
    # Input and output of the ReLU with 5000 channels each
    assert peak == pytest.approx(2 * 256 * 5000 * 4, rel=0.01)
