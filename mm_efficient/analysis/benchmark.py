"""Benchmark models side by side: LowFormer's protocol in interleaved rounds.

The published protocol (https://github.com/altair199797/LowFormer): random weights,
inference mode, warm-up, then each pass timed on its own, with device events on CUDA.
The median is reported.

In addition, models of the same batch size and shape are timed in interleaved rounds, so
that other load on the machine affects all of them. Their ratio is the median over
rounds of the ratio of their medians in a round, and far more stable than milliseconds.
"""
import itertools
import math
import platform
import re
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import rich.progress
import torch
from mmpretrain.apis import ModelHub, list_models
from rich.console import Console
from torch import Tensor

from ..deploy import relative_error
from ..errors import explain
from ..weights import FAMILIES
from .backends import DTYPES, Result, Step, build_model, check_backend, prepare
from .complexity import Forward, count_bytes
from .models import find_model

Rounds = list[list[float]]  # seconds by round and pass
# Progress bars of steps, with a description
track = partial(rich.progress.track, transient=True, console=Console(stderr=True))


class BenchmarkRun(NamedTuple):
    """What is timed: a model in a backend, on images of a shape."""

    model: str  # see find_model()
    backend: str  # see the module backends
    dtype: str  # fp32, fp16 or bf16
    batch_size: int
    height: int
    width: int
    step: str = 'forward'  # or 'train', with the backward pass


COPY_BYTES = 10**9  # that measure the bandwidth of a device, far beyond its caches
COLUMNS = (*BenchmarkRun._fields, 'median_ms', 'images_per_s', 'ratio', 'ratio_min',
           'ratio_max', 'peak_mib', 'bandwidth', 'deviation', 'passes', 'top1_reported')


@dataclass(frozen=True)
class BenchmarkConfig:
    """How to time."""

    backbone: bool = False  # time backbones only
    device: str = 'cpu'  # or cuda, cuda:N
    threads: int = 1  # on the CPU
    iterations: int = 400  # timed passes of a run
    max_seconds: float = 60.  # for these passes; there is at least one per round
    warmup: int = 10  # passes before timing, at least 1
    rounds: int = 5  # that the passes are spread over

    def settings(self) -> dict[str, Any]:
        """How and where runs are timed: settings, hardware and versions."""
        return dict(asdict(self), hardware=_hardware(self.device),
                    bandwidth_gb_s=device_bandwidth(self.device),
                    torch=torch.__version__, python=platform.python_version())


def _hardware(device: str) -> str:
    """Name of the GPU or CPU."""
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    path = Path('/proc/cpuinfo')
    found = path.exists() and re.search(r'model name\s*: (.+)', path.read_text())
    return found[1] if found else platform.processor() or platform.machine()


@lru_cache
def device_bandwidth(device: str) -> float | None:
    """Measure the memory bandwidth of a GPU, by copying on it.

    Args:
        device (str): Such as 'cuda' or 'cuda:1'.

    Returns:
        float | None: Bytes read and written per second, in 1e9, with three significant
        digits. None for a CPU.
    """
    if not device.startswith('cuda'):
        return None
    with torch.cuda.device(device):
        source, target = torch.zeros(2, COPY_BYTES, dtype=torch.uint8, device=device)
        copy = partial(target.copy_, source)
        copies = [_seconds(copy, True) for _ in range(13)]
        del source, target, copy
        torch.cuda.empty_cache()
    # The first ones wake the device up
    return float(f'{2 * COPY_BYTES / 1e9 / statistics.median(copies[3:]):.3g}')


def check_runs(runs: Sequence[BenchmarkRun], config: BenchmarkConfig) -> None:
    """Check models, backends and the device, before any work.

    Args:
        runs (Sequence[BenchmarkRun]): What is to be timed.
        config (BenchmarkConfig): How to time it.

    Raises:
        InputError: If a model or backend does not exist, or a backend does not support
            a dtype, step or device.
        ExecutionError: If the device cannot be used.
    """
    for run in runs:
        check_backend(run.backend, run.dtype, run.step, config.device)
    for name in dict.fromkeys(run.model for run in runs):
        find_model(name)
    with explain(f'device {config.device} (of cpu, cuda, cuda:N) cannot be used'):
        torch.empty(1, device=config.device)
        device_bandwidth(config.device)


def run_benchmark(runs: Sequence[BenchmarkRun], config: BenchmarkConfig) -> list[dict]:
    """Time runs; neighbours of the same images and step in interleaved rounds.

    Args:
        runs (Sequence[BenchmarkRun]): What to time.
        config (BenchmarkConfig): How to time it.

    Returns:
        list[dict]: A row per run with the keys ``COLUMNS``; None for unknown values.

    Raises:
        InputError: Before any work, see :func:`check_runs`; later if a model cannot be
            timed.
        ExecutionError: If the device cannot be used, or a backend cannot run a model.
    """
    check_runs(runs, config)
    threads, device = torch.get_num_threads(), torch.device(config.device)
    torch.set_num_threads(config.threads)
    if device.type == 'cuda' and device.index is not None:
        torch.cuda.set_device(device)
    rows = []
    # All models are compiled in Forward.forward; past its limit of graphs per function
    # PyTorch would run them eagerly
    limit = torch._dynamo.config.cache_size_limit + len(runs)
    try:
        for _, group in itertools.groupby(runs, lambda run: run[3:]):
            with torch._dynamo.config.patch(cache_size_limit=limit):
                rows += _time_group([*group], config)
            torch.compiler.reset()  # drop the graphs of this shape
    finally:
        torch.compiler.reset()
        torch.set_num_threads(threads)
    return rows


def _time_group(runs: Sequence[BenchmarkRun], config: BenchmarkConfig) -> list[dict]:
    """Time runs of the same batch size, shape and step."""
    batch_size, height, width, step = runs[0][3:]
    images = f'{batch_size} x 3 x {height} x {width}'
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch_size, 3, height, width, generator=generator,
                    device='cpu')
    x = x.to(config.device)
    models: dict[str, tuple[Any, Result]] = {}
    bounds: dict[tuple, float | None] = {}  # by model and dtype
    clocks, checks = [], []
    for run in track(runs, f'preparing {images}, {step}'):
        with explain(f'{run.model} cannot run with backend {run.backend} and '
                     f'{run.dtype} on {images} images on {config.device}'):
            if run.model not in models:
                model = build_model(run.model, x, config.backbone)
                models[run.model] = model, prepare(model, 'eager', 'fp32', x, step)[0]()
            model, reference = models[run.model]
            function, weights = prepare(model, run.backend, run.dtype, x, step)
            for _ in range(config.warmup - 1):
                function()
            deviation = _deviation(function(), reference)
            memory = None if weights is None else (
                weights + _peak_bytes(function, x.is_cuda)) / 2**20
            size = run.model, run.dtype
            if size not in bounds:
                bounds[size] = _memory_bound(model, run, x, config.device)
        checks.append((memory, bounds[size], deviation))
        clocks.append(partial(_seconds, function, x.is_cuda))
    times = _time_in_rounds(clocks, config)
    return [_row(run, rounds, times[0], *check)
            for run, rounds, check in zip(runs, times, checks)]


def _memory_bound(model: Forward, run: BenchmarkRun, x: Tensor, device: str
                  ) -> float | None:
    """Seconds in which the device could move what a forward pass has to move."""
    bandwidth = device_bandwidth(device)
    if bandwidth is None or run.step != 'forward':
        return None
    module = Forward(model.model, model.run, DTYPES[run.dtype]).eval()
    return count_bytes(module, x) / (1e9 * bandwidth)


def _deviation(result: Result, reference: Result) -> float:
    """Largest relative error of an output, and of all gradients together."""
    pairs = [*zip(result.outputs, reference.outputs)]
    if reference.gradients:  # many a single one is zero but for rounding
        first, second = (torch.cat([gradient.flatten() for gradient in each.gradients])
                         for each in (result, reference))
        pairs.append((first, second))
    return max(relative_error(y.float(), z.float()) for y, z in pairs)


def _time_in_rounds(clocks: Sequence[Callable[[], float]], config: BenchmarkConfig
                    ) -> list[Rounds]:
    """Seconds by clock, round and pass; a clock runs a warmed-up pass and times it."""
    rounds = min(config.rounds, config.iterations)
    times: list[Rounds] = [[] for _ in clocks]
    turns = [*itertools.product(range(rounds), zip(clocks, times))]
    for i, (clock, own) in track(turns, 'timing'):
        clock()  # caches still hold data of the previous model
        samples = [clock()]
        for _ in range(i + rounds, config.iterations, rounds):
            if sum(samples) >= config.max_seconds / rounds:
                break
            samples.append(clock())
        own.append(samples)
    return times


def _seconds(forward: Callable[[], object], cuda: bool) -> float:
    """Seconds of a call; on CUDA between two events of the current device."""
    if not cuda:
        begin = time.perf_counter()
        forward()
        return time.perf_counter() - begin
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    forward()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def _peak_bytes(function: Step, cuda: bool) -> int:
    """Peak memory of the tensors that a call allocates.

    Excludes scratch memory of CPU operators and what an allocator keeps cached.
    """
    if cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        with torch.profiler.profile(profile_memory=True, activities=[
                torch.profiler.ProfilerActivity.CPU]) as profile:
            result = function()  # keep it: freeing is not part of the call
    results: Any = profile.profiler
    events = [event for event in results.kineto_results.events()
              if event.name() == '[memory]']
    events.sort(key=lambda event: (  # before torch 2.4 in microseconds
        event.start_ns() if hasattr(event, 'start_ns') else event.start_us()))
    del result
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


def _row(run: BenchmarkRun, rounds: Rounds, baseline: Rounds, peak_mib: float | None,
         memory_bound: float | None, deviation: float) -> dict:
    samples = [*itertools.chain(*rounds)]
    median = statistics.median(samples)
    ratios = [statistics.median(own) / statistics.median(other)
              for own, other in zip(rounds, baseline)]
    values = (*run, 1e3 * median, run.batch_size / median, statistics.median(ratios),
              min(ratios), max(ratios), peak_mib,
              None if memory_bound is None else memory_bound / median,
              deviation if math.isfinite(deviation) else None,  # JSON has no NaN
              len(samples), reported_top1(run.model))
    return dict(zip(COLUMNS, values, strict=True))


def reported_top1(name: str) -> float | None:
    """Look up the ImageNet-1K top-1 accuracy that a model's metadata reports.

    Args:
        name (str): A variant, or a model of MMPretrain.

    Returns:
        float | None: In percent; None if unknown.
    """
    for family in FAMILIES:
        if name in family.variants:
            figures = family.reported.figures.get(name, {})
            return figures.get('cls', {}).get('Top 1 Accuracy')
    results = ModelHub.get(name).results if name in list_models() else None
    return next((float(result.metrics['Top 1 Accuracy']) for result in results or []
                 if result.dataset == 'ImageNet-1k'
                 and 'Top 1 Accuracy' in result.metrics), None)
