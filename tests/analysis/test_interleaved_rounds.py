"""The benchmark: rounds, statistics, backends and parallel jobs."""
import csv
import functools
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import pytest
import torch
from torch import nn

from mm_efficient.analysis import backends, benchmark
from mm_efficient.analysis.backends import Forward, Prepared, build_model
from mm_efficient.analysis.benchmark import (
    BenchmarkConfig,
    BenchmarkResult,
    BenchmarkRun,
    make_rows,
    read_results,
    reported_top1,
    run_benchmark,
    time_in_rounds,
    write_results,
)
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


def test_rounds_are_interleaved():
    calls, turns = [], []
    found = time_in_rounds(
        [FakeClock(calls, 'slow', 2.), FakeClock(calls, 'fast', 1.)], iterations=5,
        rounds=2, max_seconds=100, before=lambda i: turns.append((i, len(calls))))
    assert found == [[[2.] * 2, [2.] * 3], [[1.] * 2, [1.] * 3]]
    # The first pass of each turn does not count
    assert calls == 3 * ['slow'] + 3 * ['fast'] + 4 * ['slow'] + 4 * ['fast']
    assert turns == [(0, 0), (1, 3), (0, 6), (1, 10)]


def test_rounds_end_early():
    clocks = [FakeClock([], 'a', 3.), FakeClock([], 'b', 0.5)]
    found = time_in_rounds(clocks, 100, 2, max_seconds=4, before=lambda i: None)
    assert [[len(samples) for samples in each] for each in found] == [[1, 1], [4, 4]]
    few = time_in_rounds(clocks, 3, 10, max_seconds=4, before=lambda i: None)
    assert [len(rounds) for rounds in few] == [3, 3]


# ------------------------------------------------------------------------ results


def make_result(model, batch_size, *jobs, deviation=0.):
    run = BenchmarkRun(model, 'eager', 'fp32', batch_size, (224, 224))
    return BenchmarkResult(run, list(jobs), 100., deviation)


def test_rows(tmp_path):
    """Two jobs, two rounds; the second model takes half to twice the time."""
    results = [
        make_result('a', 4, [[1., 1., 4.], [2.]], [[3.], [3., 5.]]),
        make_result('soft_tiny', 4, [[2., 2., 2.], [2.]], [[1.5], [8.]]),
        make_result('a', 1, [[1.], [1.]], [[1.], [1.]], deviation=math.nan)]
    config = BenchmarkConfig(['a', 'soft_tiny'], batch_sizes=[4, 1], jobs=2)
    first, second, other = make_rows(config, results)
    # Medians of the jobs: of 1 1 2 4 and of 3 3 5; means: 2 and 11 / 3
    assert first['median_ms'] == 2250. and first['ms_per_image'] == 562.5
    assert first['mean_ms'] == pytest.approx(17000 / 6) and first['passes'] == 4
    assert first['images_per_s'] == pytest.approx(2 * 4 / 2.25)
    # Ratios of the medians of the rounds: 2, 1, 0.5 and 8 / 4
    assert (second['ratio'], second['ratio_min'], second['ratio_max']) == (1.5, 0.5, 2.)
    assert first['ratio'] == first['ratio_min'] == first['ratio_max'] == 1.
    assert first['top1_reported'] is None and second['top1_reported'] == 79.3
    assert other['ratio'] == 1. and other['deviation'] is None  # its own group
    config = BenchmarkConfig(['a', 'soft_tiny'], baseline='soft_tiny')
    assert [row['ratio'] for row in make_rows(config, results)] == [
        pytest.approx(0.75), 1., 1.]

    write_results(tmp_path / 'r.json', [first, second], config.settings())
    rows, settings = read_results(tmp_path / 'r.json')
    assert rows == [first, second]
    assert settings['baseline'] == 'soft_tiny' and settings['hardware']
    write_results(tmp_path / 'r.csv', rows, settings)
    with open(tmp_path / 'r.csv', newline='') as file:
        read = list(csv.DictReader(file))
    assert float(read[1]['median_ms']) == second['median_ms']
    assert read[0]['top1_reported'] == ''
    assert len(list(tmp_path.iterdir())) == 2


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
    def check(model=swift, backend='eager', dtype='fp32', **settings):
        BenchmarkConfig([model], [backend], [dtype], **settings).check()

    check(backend='channels_last+compile')
    check(backend='fused+onnxruntime')
    for settings, message in (
            (dict(model='resnet5'), 'there is no model .resnet5.'),
            (dict(backend='fast'), "unknown backend 'fast'"),
            (dict(backend='compile+eager'), "unknown backend 'compile.eager'"),
            (dict(backend='channels_last+onnxruntime'), 'memory format itself'),
            (dict(backend='onnxruntime', dtype='bf16'), 'fp32 only'),
            (dict(baseline='b'), 'baseline b is not among'),
            (dict(device='cuda:99'), 'device cuda:99 cannot be used')):
        with pytest.raises(InputError, match=message):
            check(**settings)
    with pytest.raises(InputError, match='has two stages'):
        build_model('swiftformer_xs_maskrcnn_1x', 'cpu')


def test_backends_compute_the_same(swift, monkeypatch):
    monkeypatch.setattr(torch, 'compile', functools.partial(
        torch.compile, backend='aot_eager'))  # the default one compiles for long
    names = ('eager', 'channels_last', 'torchscript', 'fused', 'fused+onnxruntime',
             'fused+channels_last+compile')
    config = BenchmarkConfig([swift], names, batch_sizes=[2], shapes=[(64, 96)],
                             iterations=2, warmup=1, rounds=2)
    config.check()
    steps = []
    results = run_benchmark(config, steps.append)
    assert len(steps) == config.num_steps == 3 * len(names)
    assert steps[0] == 'swift.py: preparing eager, fp32, 2 x 3 x 64 x 96'
    assert [result.run.backend for result in results] == list(names)
    for result, row in zip(results, make_rows(config, results)):
        assert row['passes'] == 2 and row['median_ms'] > 0
        assert result.deviation < 1e-5
        assert (result.peak_mib is None) == ('onnx' in result.run.backend)
    eager, fused = results[0], results[names.index('fused')]
    assert eager.deviation == 0 < fused.deviation and fused.peak_mib < eager.peak_mib


def test_dtypes_and_failures(swift):
    config = BenchmarkConfig([swift], dtypes=['bf16'], shapes=[(64, 64)], iterations=1,
                             warmup=1)
    threads = torch.get_num_threads()
    result, = run_benchmark(config, lambda step: None)
    assert 1e-5 < result.deviation < 0.1 and torch.get_num_threads() == threads
    small = BenchmarkConfig([swift], ['torchscript'], shapes=[(16, 16)])
    with pytest.raises(ExecutionError, match='swift.py cannot run with backend '
                       'torchscript and fp32 on 1 x 3 x 16 x 16 images on cpu: Value'):
        run_benchmark(small, lambda step: None)


def test_backbones_and_unfitted_models(swift):
    x = torch.randn(1, 3, 64, 64)
    assert [tuple(y.shape[1:]) for y in build_model(swift, 'cpu')(x)] == [
        (8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)]
    feature_map = build_model('eco.py', 'cpu', backbone=True)(x)[0]
    assert feature_map.shape == (1, 8, 16, 16) and feature_map.isfinite().all()
    resnet = build_model('resnet18_8xb32_in1k', 'cpu', backbone=True)
    assert resnet(x)[0].shape == (1, 512, 2, 2) and not resnet.model.training
    name = 'timm/mobilenetv3_small_050'
    assert build_model(name, 'cpu', True)(x)[0].shape[2:] == (2, 2)
    assert build_model(name, 'cpu')(x)[0].shape == (1, 1000)


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
    weights = 5000 * 1010 * 4
    with torch.inference_mode():
        peak = backends.peak_mib(Prepared(lambda: layers(x), None, weights), 'cpu')
    # The weights, and input and output of the ReLU with 5000 channels each
    assert peak == pytest.approx((weights + 2 * 256 * 5000 * 4) / 2**20, rel=0.01)


class FakeCUDA:
    """Events that are recorded at 0 and 7 ms."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    def elapsed_time(self, end):
        assert end is not self
        return 7.


@pytest.mark.parametrize('device, chosen', [('cuda', []), ('cuda:1', [1])])
def test_cuda_events_and_device(device, chosen, monkeypatch):
    """A device without an index is the current one already."""
    indices = []
    monkeypatch.setattr(torch.cuda, 'Event', FakeCUDA)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda d: indices.append(d.index))
    monkeypatch.setattr(benchmark, '_time_group', lambda config, *args: [])
    run_benchmark(BenchmarkConfig(['a'], device=device), lambda step: None)
    assert indices == chosen
    assert backends.cuda_clock(lambda: None) == 0.007


# --------------------------------------------------------------------------- jobs


def test_parallel_jobs(swift):
    config = BenchmarkConfig([swift, 'eco.py'], shapes=[(64, 64)], jobs=2, iterations=4,
                             warmup=1, rounds=2)
    steps = []
    for result in run_benchmark(config, steps.append):
        assert len(result.jobs) == 2
        assert all(len(rounds) == 2 and sum(map(len, rounds)) == 4
                   for rounds in result.jobs)
    assert steps and steps[0].startswith('swift.py: preparing')


@pytest.mark.parametrize('errors, message', [
    ([BrokenProcessPool()] * 2, 'a job was killed.*fewer --jobs'),
    ([threading.BrokenBarrierError(), ExecutionError('job 1 failed')], 'job 1 failed')])
def test_first_cause_of_a_failure(errors, message, monkeypatch):
    class Pool(ThreadPoolExecutor):
        def __init__(self, jobs, context, initializer, initargs):
            super().__init__(jobs)

    def fail(config, job):
        raise errors[job]

    monkeypatch.setattr(benchmark, 'ProcessPoolExecutor', Pool)
    monkeypatch.setattr(benchmark, '_time_in_job', fail)
    with pytest.raises(ExecutionError, match=message):
        run_benchmark(BenchmarkConfig(['a'], jobs=2), lambda step: None)


def test_failing_job(monkeypatch):
    def fail(config, progress, wait):
        raise KeyError('no memory')

    barrier = threading.Barrier(2)
    monkeypatch.setattr(benchmark, '_time_all', fail)
    monkeypatch.setattr(benchmark, '_job', dict(barrier=barrier, messages=None))
    with pytest.raises(ExecutionError, match="job 1 failed: KeyError: 'no memory'"):
        benchmark._time_in_job(BenchmarkConfig(['a']), 1)
    assert barrier.broken  # so that no other job waits
