import functools

import pytest
import torch
from torch import nn

from mm_efficient.analysis import benchmark, executors
from mm_efficient.analysis.benchmark import Plan, check_plan, make_cases, run, steps
from mm_efficient.analysis.executors import Executable, Forward, build, prepare
from mm_efficient.analysis.timing import Case, take_turns, wall_clock
from mm_efficient.errors import InputError

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
    """Name of a tiny model; its levels are the output."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    (tmp_path / 'swift.py').write_text(CONFIG.format(family='SwiftFormer', arch=SWIFT))
    (tmp_path / 'eco.py').write_text(CONFIG.format(family='EcoFormerPVT', arch=ECO))
    yield 'swift.py'
    torch.set_num_threads(threads)


class FakeClock:
    """Tells the seconds that a call returns, and notes the order of calls."""

    def __init__(self):
        self.calls = []

    def __call__(self, call):
        name, seconds = call()
        self.calls.append(name)
        return seconds


def test_models_take_turns():
    clock = FakeClock()
    turns = []
    slow, fast = lambda: ('slow', 2.), lambda: ('fast', 1.)
    found = take_turns([slow, fast], [clock] * 2, iterations=5, rounds=2,
                       max_seconds=100, before=lambda: turns.append(len(clock.calls)))
    assert found == [[[2.] * 2, [2.] * 3], [[1.] * 2, [1.] * 3]]
    # One more pass at the start of every turn, which does not count
    assert ' '.join(clock.calls) == ' '.join(
        3 * ['slow'] + 3 * ['fast'] + 4 * ['slow'] + 4 * ['fast'])
    assert turns == [0, 3, 6, 10]


def test_turns_end_early():
    clock = FakeClock()
    runs = [lambda: ('a', 3.), lambda: ('b', 0.5)]
    found = take_turns(runs, [clock] * 2, 100, 2, max_seconds=4, before=lambda: None)
    assert [[len(samples) for samples in each] for each in found] == [[1, 1], [4, 4]]
    few = take_turns(runs, [clock] * 2, 3, 10, max_seconds=4, before=lambda: None)
    assert [len(rounds) for rounds in few] == [3, 3]


def test_what_cannot_be_measured(swift):
    def check(model=swift, mode='eager', dtype='fp32', **settings):
        check_plan(Plan(make_cases([model], [mode], [dtype], [1], [(64, 64)]),
                        **settings))

    check(mode='channels_last+compile')
    check(mode='fused+onnxruntime')
    for settings, message in (
            (dict(model='resnet5'), 'there is no model .resnet5.'),
            (dict(mode='fast'), "unknown mode 'fast'"),
            (dict(mode='compile+eager'), "unknown mode 'compile.eager'"),
            (dict(mode='channels_last+onnxruntime'), 'chooses the layout itself'),
            (dict(mode='onnxruntime', dtype='bf16'), 'fp32 only'),
            (dict(dtype='fp8'), "unknown precision 'fp8'"),
            (dict(baseline='b'), 'baseline b is not among'),
            (dict(device='cuda:99'), 'device cuda:99 cannot be used')):
        with pytest.raises(InputError, match=message):
            check(**settings)
    with pytest.raises(InputError, match='has two stages'):
        build('swiftformer_xs_maskrcnn_1x', 'cpu')


def test_modes_compute_the_same(swift, monkeypatch):
    monkeypatch.setattr(torch, 'compile', functools.partial(
        torch.compile, backend='aot_eager'))  # compiling takes long
    modes = ('eager', 'channels_last', 'compile', 'torchscript', 'onnxruntime',
             'channels_last+torchscript', 'fused', 'fused+channels_last+compile',
             'fused+onnxruntime')
    for mode in modes:
        executors.check_mode(mode)
    plan = Plan((*make_cases([swift], modes, ['fp32'], [2], [(64, 96)]),
                 Case(swift, 'eager', 'bf16', 2, (64, 96))),
                iterations=2, warmup=1, rounds=2)
    told = []
    found = run(plan, told.append)
    assert len(told) == steps(plan) == len(plan.cases) * 3
    assert told[0] == 'swift.py: preparing eager, fp32, 2 x 64 x 96'
    assert [timing.case for timing in found] == list(plan.cases)
    for timing in found:
        assert timing.passes == 2 and timing.median > 0
        exact = timing.case.dtype == 'fp32'
        assert timing.deviation < 1e-5 if exact else 1e-5 < timing.deviation < 0.1
        assert (timing.peak_mib is None) == ('onnx' in timing.case.mode)
    assert found[0].deviation == 0
    fused = found[modes.index('fused')]
    assert fused.deviation > 0 and fused.peak_mib < found[0].peak_mib


def test_modes_run_what_they_say(swift):
    model = build(swift, 'cpu')
    x = torch.randn(1, 3, 64, 64)
    assert [tuple(y.shape[1:]) for y in model(x)] == [
        (8, 16, 16), (8, 8, 8), (16, 4, 4), (16, 2, 2)]
    with pytest.raises(InputError, match='swift.py cannot be run as torchscript: '):
        model.run = lambda model, x: 1 / 0
        prepare(model, Case(swift, 'torchscript'), x)


def test_backbones_and_unfitted_models(swift):
    level = build('eco.py', 'cpu', backbone=True)(torch.randn(1, 3, 64, 64))[0]
    assert level.shape == (1, 8, 16, 16) and level.isfinite().all()
    x = torch.randn(1, 3, 64, 64)
    resnet = build('resnet18_8xb32_in1k', 'cpu', backbone=True)
    assert resnet(x)[0].shape == (1, 512, 2, 2) and not resnet.model.training
    assert build('timm/mobilenetv3_small_050', 'cpu', True)(x)[0].shape[2:] == (2, 2)
    assert build('timm/mobilenetv3_small_050', 'cpu')(x)[0].shape == (1, 1000)


def test_memory():
    layers = nn.Sequential(nn.Linear(1000, 5000, bias=False), nn.ReLU(),
                           nn.Linear(5000, 10, bias=False))
    x = torch.randn(256, 1000)
    weights = 5000 * 1010 * 4
    with torch.inference_mode():
        peak = executors.peak_memory(
            Executable(lambda: layers(x), wall_clock, weights), 'cpu')
    # The weights, and both results of 5000 channels at the time of the ReLU
    assert peak == pytest.approx((weights + 2 * 256 * 5000 * 4) / 2**20, rel=0.01)


def test_tensors_of_any_output():
    class Model(nn.Module):
        def forward(self, x):
            return dict(a=[x, (2 * x, )], b=3 * x)
    found = Forward(Model(), executors._call)(torch.ones(1))
    assert [y.item() for y in found] == [1., 2., 3.]
    assert executors.deviation([torch.tensor([1., -3.])],
                               [torch.tensor([1., -4.])]) == 0.25


def test_parallel_jobs(swift):
    plan = Plan(make_cases([swift, 'eco.py'], ['eager'], ['fp32'], [1], [(64, 64)]),
                jobs=2, iterations=4, warmup=1, rounds=2)
    told = []
    found = run(plan, told.append)
    assert len(told) == steps(plan)
    for timing in found:
        assert len(timing.jobs) == 2
        assert all(len(rounds) == 2 and sum(map(len, rounds)) == 4
                   for rounds in timing.jobs)


def test_a_job_that_fails(monkeypatch, swift):
    def fail(plan, progress, wait):
        raise InputError('no memory')

    messages = []
    monkeypatch.setattr(benchmark, '_measure', fail)

    class Box:
        put = messages.append
        wait = None

    benchmark._work(Plan(()), Box, Box, 1)
    assert messages == [('error', 'no memory')]

    class Dead:
        exitcode = -9

    class Silent:
        def get(self, timeout):
            raise benchmark.queue.Empty

    with pytest.raises(InputError, match='exit code -9'):
        benchmark._collect([Dead], Silent(), None)
