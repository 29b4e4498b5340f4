"""The benchmark on CUDA, with fakes on a CPU."""
import contextlib
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch
from torch import nn

from mm_efficient.analysis import ModelSpec, backends, benchmark
from mm_efficient.analysis.benchmark import (
    BenchmarkConfig,
    BenchmarkRun,
    run_benchmark,
)
from mm_efficient.analysis.complexity import Forward, call_model

SHORT = BenchmarkConfig(iterations=2, rounds=2, warmup=1)


class FakeCUDA:
    """Events that are recorded at 0 and 7 ms."""

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        pass

    def elapsed_time(self, end):
        assert end is not self
        return 7.


@pytest.mark.parametrize('device', ['cpu', 'cuda'])
def test_bandwidth_column(device, monkeypatch):
    """Copies of 2 GB in 7 ms, and the bytes of a layer."""
    layer = ModelSpec('layer', lambda: nn.Conv2d(3, 8, 1), call_model, (8, 8))
    for module in backends, benchmark:
        monkeypatch.setattr(module, 'find_model', lambda name: layer)
    monkeypatch.setattr(benchmark, 'device_bandwidth',
                        lambda name: 1e-3 if device == 'cuda' else None)
    rows = run_benchmark([
        BenchmarkRun('layer', 'eager', dtype, 2, 8, 8, step)
        for step in ('forward', 'train') for dtype in ('fp32', 'bf16')], SHORT)
    if device == 'cpu':
        assert [row['bandwidth'] for row in rows] == 4 * [None]
        return
    size = 2 * 64 * (3 + 8) + 8 * 3 + 8  # images, weight and bias
    for row, width in zip(rows[:2], (4, 2)):
        seconds = row['bandwidth'] * row['median_ms'] / 1e3
        assert seconds == pytest.approx(width * size / 1e6)
    assert [row['bandwidth'] for row in rows[2:]] == [None, None]


def test_bandwidth_of_a_device(monkeypatch):
    monkeypatch.setattr(benchmark, 'COPY_BYTES', 10**6)
    monkeypatch.setattr(torch.cuda, 'Event', FakeCUDA)
    for name in ('synchronize', 'empty_cache'):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    monkeypatch.setattr(torch.cuda, 'device', lambda name: contextlib.nullcontext())
    zeros = torch.zeros
    monkeypatch.setattr(torch, 'zeros', lambda *size, dtype, device: zeros(
        *size, dtype=dtype))
    measure = benchmark.device_bandwidth.__wrapped__  # without its cache
    assert measure('cuda:1') == 0.286  # 2 MB in 7 ms
    assert measure('cpu') is None


class FakeGraph:
    """Counts replays."""

    replays = 0

    def replay(self):
        self.replays += 1


def test_captured_graph(monkeypatch):
    """Warmed up on another stream, captured once, then only replayed."""
    state = ['default']

    @contextlib.contextmanager
    def enter(place, *args):
        state.append(place)
        yield
        state.pop()

    for name in ('Stream', 'current_stream'):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    graph = FakeGraph()
    monkeypatch.setattr(torch.cuda, 'CUDAGraph', lambda: graph)
    monkeypatch.setattr(torch.cuda, 'stream', lambda stream: enter('side stream'))
    monkeypatch.setattr(torch.cuda, 'graph', lambda graph: enter(graph))
    calls = []

    def run(model, x):
        calls.append((state[-1], torch.is_inference_mode_enabled(),
                      x.is_contiguous(memory_format=torch.channels_last)))
        return model(x)

    model = Forward(nn.Conv2d(3, 8, 3), run)
    step, weights = backends.prepare(model, 'channels_last+cudagraph', 'fp32',
                                     torch.ones(1, 3, 8, 8))
    assert calls == 3 * [('side stream', True, True)] + [(graph, True, True)]
    assert weights is None
    assert step() is step() and graph.replays == 2 and len(calls) == 4
    torch.testing.assert_close(step().outputs[0], model.model(torch.ones(1, 3, 8, 8)))


def test_onnxruntime_waits_for_what_it_binds(monkeypatch):
    """It runs on a stream of its own, before which PyTorch's has to be done."""
    done = []
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: done.append('synchronize'))
    monkeypatch.setattr(torch.onnx, 'export', MagicMock())
    runtime = MagicMock()
    runtime.get_available_providers.return_value = ['CUDAExecutionProvider']
    session = runtime.InferenceSession.return_value
    session.get_outputs.return_value = [MagicMock()]
    session.run_with_iobinding.side_effect = lambda binding: done.append('run')
    monkeypatch.setitem(sys.modules, 'onnxruntime', runtime)
    x = SimpleNamespace(is_cuda=True, device=torch.device('cuda'), shape=(1, 3, 8, 8),
                        data_ptr=lambda: 0)
    backends._onnx_session(lambda x: [torch.zeros(1)], x)()
    assert done == ['synchronize', 'run']


@pytest.mark.parametrize('device, chosen', [('cuda', []), ('cuda:1', [1])])
def test_cuda_events_and_device(device, chosen, monkeypatch):
    """A device without an index is the current one already."""
    indices = []
    monkeypatch.setattr(torch.cuda, 'Event', FakeCUDA)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda d: indices.append(d.index))
    monkeypatch.setattr(torch, 'empty', lambda *size, device: None)
    monkeypatch.setattr(benchmark, 'device_bandwidth', lambda name: 1.)
    monkeypatch.setattr(benchmark, '_time_group', lambda runs, config: [])
    run_benchmark([BenchmarkRun('soft_tiny', 'eager', 'fp32', 1, 64, 64)],
                  BenchmarkConfig(device=device))
    assert indices == chosen
    assert benchmark._seconds(lambda: None, cuda=True) == 0.007
